"""The doctor's checks of the machine, the engines and the home, each given what it looks at."""

import json
import sys
from dataclasses import replace

import pytest

from localllm.checkup import engines
from localllm.checkup.computer import check_machine, check_python
from localllm.checkup.engines import Probe, check_llama, check_mlx, run_probe
from localllm.checkup.home import check_disk, check_models, check_partial, check_settings
from localllm.machine import Blas, Machine
from localllm.memory import MachineMemory
from localllm.models.manifest import Manifest, ModelFile, write_manifest
from localllm.models.store import ModelStore
from tests.fakes.gguf_files import write_tiny_gguf

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


def test_the_real_engines_load():
    assert levels(check_llama())[0] == "ok"
    assert levels(check_mlx(None))[0] == "ok"


def fake_probe(**answers: Probe):
    """Answers by the engine's name, or by ``blas`` when a library is given."""
    return lambda engine, *blas: answers["blas" if blas else engine]


def test_llama_that_crashes_is_a_problem():
    (found,) = check_llama(fake_probe(llama=Probe({}, "it crashed (SIGILL)")))
    assert found.level == "problem"
    assert "SIGILL" in found.text
    assert "llama-cpp-python" in found.hint


@pytest.mark.parametrize(
    ("system", "gpu", "level"), [("Darwin", True, "ok"), ("Darwin", False, "warn"), ("Linux", False, "ok")]
)
def test_llama_on_the_gpu(monkeypatch, system, gpu, level):
    monkeypatch.setattr(engines.platform, "system", lambda: system)
    facts = {"system": "Metal : EMBED = 1 | CPU : NEON = 1 | SVE = 0 |", "gpu": gpu}
    loads, uses = check_llama(fake_probe(llama=Probe(facts)))
    assert loads.text == "llama.cpp loads, built with EMBED NEON"
    assert uses.level == level


SLOW, FAST = Probe({"device": "cpu", "gflops": 4.9}), Probe({"device": "cpu", "gflops": 98.0})
MKL = Blas("MKL", "/env/lib/libmkl_rt.so.3")


@pytest.mark.parametrize(
    ("blas", "answers", "level", "words"),
    [
        (None, {"mlx": SLOW}, "warn", "reference BLAS: 5 GFLOP/s"),
        (MKL, {"mlx": SLOW, "blas": FAST}, "ok", "98 GFLOP/s, 5 without it"),
        (MKL, {"mlx": SLOW, "blas": Probe({}, "no libiomp5")}, "warn", "does not load: no libiomp5"),
    ],
    ids=["reference", "tuned", "broken"],
)
def test_the_blas_of_mlx_on_linux(monkeypatch, blas, answers, level, words):
    monkeypatch.setattr(engines.platform, "system", lambda: "Linux")
    device, found = check_mlx(blas, fake_probe(**answers))
    assert device.text == "MLX loads; its device is the CPU"
    assert found.level == level
    assert words in found.text
    assert ("libopenblas" in found.hint) == (level == "warn")


def test_mlx_on_the_gpu_needs_no_blas(monkeypatch):
    monkeypatch.setattr(engines.platform, "system", lambda: "Darwin")
    (found,) = check_mlx(None, fake_probe(mlx=Probe({"device": "gpu", "gflops": 5000.0})))
    assert found.text.endswith("GPU")


def test_mlx_that_does_not_load_is_a_warning():
    (found,) = check_mlx(None, fake_probe(mlx=Probe({}, "No module named 'mlx'")))
    assert found.level == "warn"


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it crashed (SIGKILL)"),
        ("import time; time.sleep(60)", "no answer in 1 seconds"),
        ("raise ImportError('no \\x1b[31m such library')", "ImportError: no ␛[31m such library"),
        ("raise SystemExit(7)", "exit code 7"),
        ("print('no json')", "exit code 0"),
    ],
    ids=["killed", "hangs", "raises", "exits", "babbles"],
)
def test_a_probe_that_goes_wrong(monkeypatch, tmp_path, program, failure):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o700)
    monkeypatch.setattr(engines.sys, "executable", str(script))
    assert run_probe("llama", timeout=1) == Probe({}, failure)


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
