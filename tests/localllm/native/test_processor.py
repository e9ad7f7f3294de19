"""Reading the processor, and what a build asks of it."""

import pytest

from localllm.native import processor as module
from localllm.native.processor import Processor, read_processor
from tests.fakes.machines import processor


def test_the_features_of_an_amx_machine_in_llama_cpps_words(tmp_path):
    found = processor("amx", tmp_path)
    assert found.name == "INTEL(R) XEON(R) PLATINUM 8581C 6 207"
    assert found.features[-5:] == ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8")
    assert found.lacks(("AVX512", "AMX_INT8", "LLAMAFILE")) == ()


def test_what_a_build_asks_in_vain(tmp_path):
    old = processor("no-avx", tmp_path)
    assert old.features == ("SSE42",)
    assert old.lacks(("SSE3", "AVX", "AVX2", "OPENMP", "AVX512")) == ("AVX", "AVX2", "AVX512")


def test_avx512_needs_all_the_parts_that_a_build_names(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name : Xeon Phi\nflags : avx avx2 avx512f avx512cd\n")
    assert "AVX512" not in Processor("x86_64", "", read_processor(path).flags).features


def test_older_kernels_spell_some_features_otherwise(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("flags : avx512vbmi\n")
    assert "avx512_vbmi" in read_processor(path).flags


def test_another_processor_has_another_key(tmp_path):
    keys = {processor(sort, tmp_path).key for sort in ("amx", "avx512", "avx2", "no-avx")}
    assert len(keys) == 4
    assert processor("amx", tmp_path).key == processor("amx", tmp_path).key


def test_no_cpuinfo_and_arm_tell_nothing_of_x86(tmp_path):
    nothing = read_processor(tmp_path / "missing")
    assert nothing.flags == frozenset()
    assert Processor("x86_64", "", frozenset()).lacks(("AVX",)) == ()
    arm = Processor("aarch64", "Neoverse-N1", frozenset({"asimd"}))
    assert (arm.features, arm.lacks(("AVX",))) == ((), ())


@pytest.mark.parametrize(
    ("machine", "words", "features"),
    [
        ("arm64", {"machdep.cpu.brand_string": "Apple M2"}, ()),
        (
            "x86_64",
            {"machdep.cpu.features": "SSE4.2 AVX1.0 FMA F16C", "machdep.cpu.leaf7_features": "AVX2 BMI2"},
            ("SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2"),
        ),
    ],
)
def test_macs(monkeypatch, machine, words, features):
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(module, "sysctl", lambda name: words.get(name, ""))
    found = read_processor()
    assert found.features == features
    assert found.name == words.get("machdep.cpu.brand_string", "")
