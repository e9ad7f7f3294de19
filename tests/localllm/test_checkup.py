"""The doctor's checks of the machine, the engines and the home, each given what it looks at."""

import json
from dataclasses import replace

import pytest

from localllm.checkup import engines
from localllm.checkup.computer import check_machine, check_python
from localllm.checkup.engines import check_llama, check_mlx
from localllm.checkup.home import check_disk, check_models, check_partial, check_settings
from localllm.machine import Machine
from localllm.memory import MachineMemory
from localllm.models.manifest import Manifest, ModelFile, write_manifest
from localllm.models.store import ModelStore
from localllm.native.blas import BlasVerdict, Tried, prove_blas
from localllm.native.llama_verdict import Attempt, Verdict, prove_llama
from localllm.native.probing import Probe
from localllm.native.processor import Processor
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.machines import processor

GB = 1_000_000_000
LAPTOP = Machine("macOS 15.5", "arm64", "Apple M2 Pro", 10, 8)
MEMORY = MachineMemory(16 * GB, 9 * GB, 10 * GB)


def levels(findings):
    return [finding.level for finding in findings]


def test_the_machine_in_two_lines():
    chip, memory = check_machine(LAPTOP, MEMORY)
    assert chip.text == "macOS 15.5 on arm64: Apple M2 Pro, 10 cores (8 fast)"
    assert memory.text == "Memory: 16.0 GB, 9.0 GB free; models may use 10.0 GB together"


def test_little_memory_and_a_python_of_the_wrong_kind_are_warnings():
    found = check_machine(replace(LAPTOP, architecture="x86_64"), MachineMemory(2 * GB, GB, GB))
    assert levels(found) == ["ok", "warn", "warn"]


def test_packages_and_a_missing_one():
    python, missing, present = check_python(("numpy", "surely-not-installed"))
    assert python.text.startswith("Python 3.")
    assert (missing.level, missing.text) == ("problem", "surely-not-installed is not installed")
    assert present.text.startswith("numpy ")


def test_the_real_engines_work(home):
    assert levels(check_llama(prove_llama(home)))[0] == "ok"
    assert levels(check_mlx(prove_blas(home)))[0] == "ok"


FULL = Verdict((Attempt("full"),), ("SSE3", "AVX", "AVX2", "FMA", "F16C", "AVX512"))
CRASHED = "an illegal instruction (SIGILL)"
UNPACKED = replace(FULL, attempts=(Attempt("full", CRASHED), Attempt("unpacked")))
NOWHERE = replace(FULL, attempts=(Attempt("full", CRASHED), Attempt("unpacked", CRASHED)))


@pytest.mark.parametrize(
    ("verdict", "sort", "level", "words", "hint"),
    [
        (FULL, "avx512", "ok", "computes rightly, alone and in batches (built with SSE3 AVX AVX2", ""),
        (replace(FULL, features=("AVX", "AVX2", "FMA", "F16C")), "avx512", "warn", "does not use AVX512", "--mend"),
        (UNPACKED, "amx", "warn", f"works without packed weights: as it was built it fails here ({CRASHED})", "--mend"),
        (replace(UNPACKED, at_work=True), "amx", "warn", "a model died in it", "--mend"),
        (NOWHERE, "avx2", "problem", CRASHED, "This processor has no AVX512. `localllm doctor --mend`"),
        (Verdict((Attempt("full", "OSError: no libgomp"),)), "avx2", "problem", "no libgomp", "--mend"),
    ],
)
def test_what_is_known_of_llama(tmp_path, verdict, sort, level, words, hint):
    found = check_llama(verdict, processor(sort, tmp_path))[0]
    assert found.level == level
    assert words in found.text
    assert hint in found.hint
    assert bool(found.hint) == bool(hint)


@pytest.mark.parametrize(
    ("system", "gpu", "way", "level"),
    [
        ("Darwin", True, "full", "ok"),
        ("Darwin", True, "cpu", "warn"),
        ("Darwin", False, "full", "warn"),
        ("Linux", False, "full", "ok"),
    ],
)
def test_llama_on_the_gpu(monkeypatch, system, gpu, way, level):
    monkeypatch.setattr(engines.platform, "system", lambda: system)
    monkeypatch.delenv("LOCALLLM_LLAMA_WAY", raising=False)
    verdict = Verdict((Attempt(way),), ("NEON",), gpu=gpu)
    _, uses = check_llama(verdict, Processor("arm64", "Apple M2", frozenset()))
    assert uses.level == level


def test_a_chosen_way_is_said(monkeypatch):
    monkeypatch.setenv("LOCALLLM_LLAMA_WAY", "unpacked")
    assert "LOCALLLM_LLAMA_WAY is set" in check_llama(FULL)[1].text


def fake_probe(mlx: Probe, blas: Probe | None = None):
    """MLX's own answer, and that with a BLAS."""

    def probe(module, *arguments, environment=None, timeout=60):
        return blas if environment["LOCALLLM_BLAS"] else mlx

    return probe


SLOW, FAST = Probe({"device": "cpu", "gflops": 4.9}), Probe({"device": "cpu", "gflops": 98.0})
MKL = Tried("MKL", "/env/lib/libmkl_rt.so.3", "", "", 98.0)
OWN = Tried("OpenBLAS", "libopenblas.so.0", "", "Prescott", 32.0)
TOLD = Tried("OpenBLAS", "libopenblas.so.0", "SkylakeX", "SkylakeX", 149.0)
BROKEN = Tried("MKL", "/env/lib/libmkl_rt.so.3", "", failure="no libiomp5")


@pytest.mark.parametrize(
    ("blas", "answers", "level", "words"),
    [
        (BlasVerdict((), None), [SLOW], "warn", "reference BLAS: 5 GFLOP/s"),
        (BlasVerdict((MKL,), MKL), [SLOW, FAST], "ok", "98 GFLOP/s, 5 without it"),
        (
            BlasVerdict((OWN, TOLD), TOLD),
            [SLOW, FAST],
            "ok",
            "kernel SkylakeX) is loaded for MLX: 98 GFLOP/s, 5 without it; by itself it takes Prescott: 32",
        ),
        (BlasVerdict((MKL,), MKL), [SLOW, Probe({}, "no libiomp5")], "warn", "does not load under MLX: no libiomp5"),
    ],
    ids=["reference", "tuned", "told", "broken"],
)
def test_the_blas_of_mlx_on_linux(monkeypatch, blas, answers, level, words):
    monkeypatch.setattr(engines.platform, "system", lambda: "Linux")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    device, found = check_mlx(blas, fake_probe(*answers))
    assert device.text == "MLX loads; its device is the CPU"
    assert found.level == level
    assert words in found.text
    assert ("libopenblas" in found.hint) == (level == "warn")


def test_a_blas_that_cannot_be_used_and_a_kernel_of_the_persons_own_are_said(monkeypatch):
    monkeypatch.setattr(engines.platform, "system", lambda: "Linux")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    _, unusable, _, own = check_mlx(BlasVerdict((OWN, BROKEN), OWN), fake_probe(SLOW, FAST))
    assert "MKL (/env/lib/libmkl_rt.so.3) cannot be used: no libiomp5" in unusable.text
    assert own.text == "OPENBLAS_CORETYPE=Nehalem is set, and obeyed"


def test_mlx_on_the_gpu_needs_no_blas(monkeypatch):
    monkeypatch.setattr(engines.platform, "system", lambda: "Darwin")
    (found,) = check_mlx(BlasVerdict((), None), fake_probe(Probe({"device": "gpu", "gflops": 5000.0})))
    assert found.text.endswith("GPU")


def test_mlx_that_does_not_load_is_a_warning():
    (found,) = check_mlx(BlasVerdict((), None), fake_probe(Probe({}, "No module named 'mlx'")))
    assert found.level == "warn"


@pytest.mark.parametrize(("free", "level"), [(500_000_000, "problem"), (5 * GB, "warn"), (50 * GB, "ok")])
def test_room_on_the_disk(home, free, level):
    assert levels(check_disk(home, free)) == [level]
    assert check_disk(home)[0].text.startswith("Free on the disk: ")


def test_settings(home):
    assert check_settings(home)[0].text == "Settings: the defaults"
    home.settings_file.write_text("ctx = 4096\n")
    assert check_settings(home)[0].text == "Settings: valid"
    home.settings_file.write_text("ctx = 'many'\n")
    (found,) = check_settings(home)
    assert found.level == "problem"
    assert "ctx" in found.text


def test_models_and_damaged_ones(home):
    assert levels(check_models(ModelStore(home))) == ["warn"]
    directory = home.models / "tiny" / "f16"
    directory.mkdir(parents=True)
    path = write_tiny_gguf(directory / "tiny.gguf")
    files = (ModelFile("tiny.gguf", path.stat().st_size, "0" * 64),)
    write_manifest(directory, Manifest("tiny", "f16", "file:tiny.gguf", "gguf", files))
    assert check_models(ModelStore(home))[0].text == "Models: 1 (0.00 GB)"
    path.write_bytes(path.read_bytes()[:-100])
    assert "tiny:f16 are missing or cut short" in check_models(ModelStore(home))[1].text
    path.unlink()
    assert levels(check_models(ModelStore(home))) == ["ok", "problem"]
    write_tiny_gguf(path)
    broken = home.models / "broken" / "q8_0"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text(json.dumps({"name": 7})[:-1])
    found = check_models(ModelStore(home))
    assert levels(found) == ["ok", "problem"]
    assert str(broken) in found[1].text


def test_unfinished_downloads(home):
    assert check_partial(home) == []
    (home.partial / "some-model").mkdir()
    (home.partial / "some-model" / "model.gguf").write_bytes(bytes(20_000_000))
    (found,) = check_partial(home)
    assert found.text == "Unfinished downloads take 0.02 GB: some-model"
