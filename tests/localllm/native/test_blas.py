"""Which BLAS, and which of its kernels: the fastest that is right."""

import ctypes
import os

import pytest

from localllm.machine import BLAS_KERNEL_VARIABLE, BLAS_VARIABLE, OPENBLAS_VARIABLE, Blas, preload_blas
from localllm.native import environment as module
from localllm.native.blas import PROBE, BlasVerdict, Tried, better_kernels, needs_blas, prove_blas
from localllm.native.environment import blas_environment, native_environment
from localllm.native.probing import Probe, run_probe
from tests.fakes.machines import needs_compiler, processor

MKL = Blas("MKL", "/env/lib/libmkl_rt.so.3")
OPENBLAS = Blas("OpenBLAS", "libopenblas.so.0")


@needs_compiler
def test_the_wrong_kernel_of_a_machine_is_found_and_another_is_taken(odd_blas, home, tmp_path, monkeypatch):
    monkeypatch.delenv(OPENBLAS_VARIABLE, raising=False)
    verdict = prove_blas(home, libraries=[odd_blas], processor=processor("avx512", tmp_path))
    kernels = {one.told: one for one in verdict.tried}
    assert kernels[""].kernel == "Prescott"
    assert kernels["SkylakeX"].failure == "an illegal instruction (SIGILL)"
    assert kernels["Zen"].failure == "its products are wrong"
    assert verdict.best == kernels["Haswell"]
    assert verdict.best.gflops > kernels[""].gflops > 0
    assert verdict.as_it_came.kernel == "Prescott"
    again = prove_blas(home, libraries=[odd_blas], processor=processor("avx512", tmp_path), probe=None)
    assert again == verdict, "once a machine"


@needs_compiler
def test_a_persons_own_kernel_is_obeyed(odd_blas, home, tmp_path, monkeypatch):
    monkeypatch.setenv(OPENBLAS_VARIABLE, "Nehalem")
    verdict = prove_blas(home, libraries=[odd_blas], processor=processor("avx512", tmp_path))
    assert [(one.told, one.kernel) for one in verdict.tried] == [("", "Nehalem")]


@needs_compiler
def test_another_version_of_the_library_is_tried_anew(odd_blas, home, tmp_path, monkeypatch):
    monkeypatch.delenv(OPENBLAS_VARIABLE, raising=False)
    n_probes = 0

    def probe(*args, **kwargs):
        nonlocal n_probes
        n_probes += 1
        return run_probe(*args, **kwargs)

    for expected in (1, 1):
        prove_blas(home, libraries=[odd_blas], processor=processor("no-avx", tmp_path), probe=probe)
        assert n_probes == expected
    os.utime(odd_blas.library, (1, 1))
    prove_blas(home, libraries=[odd_blas], processor=processor("no-avx", tmp_path), probe=probe)
    assert n_probes == 2


def speeds(**answers: float):
    """A probe that finds these speeds, by the kernel that was named or ``mkl``; ``own`` is OpenBLAS's own choice."""

    def probe(module, library, *, environment=None, timeout=60):
        assert module == PROBE
        kernel = (environment or {}).get(OPENBLAS_VARIABLE, "own")
        speed = answers.get("mkl" if "mkl" in library else kernel)
        if speed is None:
            return Probe({}, "it does not load")
        facts = {"kernel": "" if "mkl" in library else {"own": "Prescott"}.get(kernel, kernel), "file": ""}
        return Probe({**facts, "right": True, "gflops": speed})

    return probe


@pytest.mark.parametrize(
    ("libraries", "answers", "best"),
    [
        ([OPENBLAS], {"own": 32, "SkylakeX": 149, "Haswell": 95, "Zen": 94}, "SkylakeX"),
        ([OPENBLAS, MKL], {"own": 32, "SkylakeX": 149, "mkl": 170}, "mkl"),
        ([OPENBLAS, MKL], {"own": 140, "SkylakeX": 149, "mkl": 60}, "own"),  # no more than noise
        ([OPENBLAS, MKL], {"mkl": 60}, "mkl"),
        ([OPENBLAS], {}, None),
        ([], {}, None),
    ],
)
def test_the_fastest_is_kept(home, tmp_path, monkeypatch, libraries, answers, best):
    monkeypatch.delenv(OPENBLAS_VARIABLE, raising=False)
    verdict = prove_blas(home, libraries=libraries, processor=processor("avx512", tmp_path), probe=speeds(**answers))
    found = verdict.best
    assert (found and ("mkl" if found.name == "MKL" else found.told or "own")) == best


@pytest.mark.parametrize(
    ("sort", "taken", "tried"),
    [
        ("amx", "Prescott", ["SapphireRapids", "Cooperlake", "SkylakeX", "Haswell", "Zen", "Sandybridge"]),
        ("avx512", "Haswell", ["SkylakeX", "Zen", "Sandybridge"]),
        ("avx512", "SkylakeX", []),
        ("avx2", "Zen", []),
        ("avx2", "Nehalem", ["Haswell", "Zen", "Sandybridge"]),
        ("no-avx", "Nehalem", []),
    ],
)
def test_other_kernels_are_tried_only_where_the_processor_can_do_more(tmp_path, sort, taken, tried):
    assert better_kernels(processor(sort, tmp_path), taken) == tried


@pytest.mark.skipif(not needs_blas(), reason="MLX has Accelerate and Metal here")
def test_workers_are_told_and_whoever_was_told_is_not_asked_again(home, monkeypatch):
    found = Tried("OpenBLAS", "libopenblas.so.0", "SkylakeX", "SkylakeX", 149.0)
    monkeypatch.setattr(module, "prove_blas", lambda home: BlasVerdict((found,), found))
    for name in (BLAS_VARIABLE, BLAS_KERNEL_VARIABLE, OPENBLAS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert blas_environment(home) == {BLAS_VARIABLE: "libopenblas.so.0", BLAS_KERNEL_VARIABLE: "SkylakeX"}
    monkeypatch.setenv(OPENBLAS_VARIABLE, "Haswell")
    assert blas_environment(home) == {BLAS_VARIABLE: "libopenblas.so.0"}, "the person's own choice holds"
    monkeypatch.setenv(BLAS_VARIABLE, "")
    monkeypatch.setenv("LOCALLLM_LLAMA_WAY", "full")
    assert native_environment(home) == {}


def test_only_the_blas_is_told_the_kernel(monkeypatch):
    seen = []
    monkeypatch.setenv(BLAS_VARIABLE, "libopenblas.so.0")
    monkeypatch.setenv(BLAS_KERNEL_VARIABLE, "SkylakeX")
    monkeypatch.delenv(OPENBLAS_VARIABLE, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: seen.append((path, os.environ.get(OPENBLAS_VARIABLE))))
    assert preload_blas() == "libopenblas.so.0"
    assert seen == [("libopenblas.so.0", "SkylakeX")]
    assert OPENBLAS_VARIABLE not in os.environ, "NumPy has an OpenBLAS of its own"
    monkeypatch.setenv(OPENBLAS_VARIABLE, "Haswell")
    preload_blas()
    assert seen[1] == ("libopenblas.so.0", "Haswell")
