"""The rungs of the ladder that need another build, and climbing down them."""

import zipfile
from pathlib import Path

import pytest

from localllm.errors import EngineError
from localllm.native import rebuild
from localllm.native.probing import Probe
from localllm.native.processor import Processor
from localllm.native.rebuild import Rung, build_wheel, climb_down, install_wheel, rungs
from tests.fakes.machines import processor

NATIVE = ("-DGGML_NATIVE=ON",)
AMX_BUILD = ("AVX", "F16C", "FMA", "AVX2", "BMI2", "AVX512", "AVX512_VNNI", "AMX_INT8")


def features(rung: Rung) -> set[str]:
    return {flag[7:-3] for flag in rung.cmake if flag.endswith("=ON")}


def test_an_amx_machine_whose_own_build_crashes(tmp_path):
    named, without, portable = rungs(processor("amx", tmp_path), AMX_BUILD)
    assert features(named) == {
        *("SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
    }
    assert "-DGGML_AMX_INT8=OFF" in named.cmake
    assert features(without) == {"SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2"}
    assert features(portable) == {"SSE42"}
    assert all("-DGGML_NATIVE=OFF" in rung.cmake for rung in (named, without, portable))


@pytest.mark.parametrize(
    ("sort", "built_with", "n_rungs"),
    [
        ("avx2", AMX_BUILD, 3),  # a wheel of another machine: the compiler's own choice comes first
        ("avx2", ("AVX", "AVX2", "FMA"), 2),  # built here: it would fail again
        ("avx2", ("SSE3",), 3),  # built for every machine: this one can do more
        ("no-avx", (), 2),  # nothing is known of it; portable is all that this processor has
    ],
)
def test_the_compilers_choice_is_tried_where_the_build_is_from_elsewhere(tmp_path, sort, built_with, n_rungs):
    found = rungs(processor(sort, tmp_path), built_with)
    assert len(found) == n_rungs
    assert (found[0].cmake == NATIVE) == (n_rungs == 3 or sort == "no-avx")
    assert len({rung.cmake for rung in found}) == len(found)


def test_other_architectures_have_two_rungs():
    native, portable = rungs(Processor("aarch64", "Neoverse", frozenset({"asimd"})), ("NEON",))
    assert (native.cmake, portable.cmake) == (NATIVE, ("-DGGML_NATIVE=OFF",))


RUNGS = [Rung("first", ("-DA=1",)), Rung("second", ("-DB=1",)), Rung("third", ("-DC=1",))]


def fake_build(rung, directory):
    wheel = directory / "llama_cpp_python-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llama_cpp/lib/libllama.so", rung.name)
    return wheel


def fake_probe(works: str):
    def probe(module, way, *, environment=None, timeout=60):
        name = Path(environment["LLAMA_CPP_LIB_PATH"], "libllama.so").read_text()
        facts = {"features": ["AVX"], "gpu": False, "single": 0.02, "batch": 0.02}
        return Probe(facts) if name == works else Probe(facts, "an illegal instruction (SIGILL)")

    return probe


def test_the_first_that_works_is_taken_and_the_others_are_told(tmp_path):
    tried = []
    rebuilt = climb_down(RUNGS, tmp_path, build=fake_build, probe=fake_probe("second"), on_rung=tried.append)
    assert rebuilt.rung == RUNGS[1]
    assert tried == RUNGS[:2]
    assert rebuilt.failures == ("first: an illegal instruction (SIGILL)",)
    assert rebuilt.wheel.is_file()


def test_none_works(tmp_path):
    with pytest.raises(EngineError, match=r"No build of llama.cpp works.*first: an illegal.*third: an illegal"):
        climb_down(RUNGS, tmp_path, build=fake_build, probe=fake_probe("none"), on_rung=print)


def test_the_build_and_what_pip_is_told(tmp_path, monkeypatch):
    asked = []

    def run(command, *, env, stdout, **kwargs):
        asked.append((command, env))
        fake_build(RUNGS[0], tmp_path)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(rebuild.subprocess, "run", run)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=ON")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/elsewhere")
    wheel = build_wheel(RUNGS[0], tmp_path, constraints=tmp_path / "constraints.txt")
    install_wheel(wheel)
    (built, environment), (installed, _) = asked
    assert environment["CMAKE_ARGS"] == "-DGGML_BLAS=ON -DA=1", "the person's own options stay"
    assert "LLAMA_CPP_LIB_PATH" not in environment
    assert {"wheel", "--no-cache-dir", "--no-deps"} <= set(built)
    assert any(word.startswith("llama-cpp-python==") for word in built)
    assert installed[-2:] == ["--no-deps", str(wheel)]


def test_a_build_that_fails_says_why_and_changes_nothing(tmp_path, monkeypatch):
    def run(command, *, stdout, **kwargs):
        stdout.write(b"Collecting llama-cpp-python\n  CMake Error: CMAKE_CXX_COMPILER not set\n\nfailed\n")
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(rebuild.subprocess, "run", run)
    with pytest.raises(EngineError, match=r"CMake Error: CMAKE_CXX_COMPILER not set.*compiler.*untouched"):
        build_wheel(RUNGS[0], tmp_path)
