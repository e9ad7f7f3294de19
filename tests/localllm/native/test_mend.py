"""Mending: what is looked at, what is built, what is said."""

from pathlib import Path

import pytest

from localllm.errors import EngineError
from localllm.native import mend
from localllm.native.blas import BlasVerdict, Tried
from localllm.native.llama_verdict import Attempt, Verdict
from localllm.native.mend import blas_line, mend_llama
from localllm.native.rebuild import Rebuilt, Rung
from tests.fakes.machines import needs_compiler, processor

AVX2 = ("AVX", "AVX2", "FMA", "F16C")
WORKS = Verdict((Attempt("full"),), AVX2)
UNPACKED = Verdict((Attempt("full", "it crashed"), Attempt("unpacked")), AVX2)
NOWHERE = Verdict((Attempt("full", "it crashed"), Attempt("unpacked", "it crashed")), AVX2)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with AVX2 whose verdicts are taken from a list; what is built and installed is noted."""
    verdicts, done = [], []
    monkeypatch.setattr(mend, "read_processor", lambda: processor("avx2", tmp_path))
    monkeypatch.setattr(mend, "prove_llama", lambda home, *, anew=False: verdicts.pop(0))

    def climb_down(rungs, directory, *, build, on_rung):
        on_rung(rungs[0])
        done.append(rungs[0].name)
        return Rebuilt(Rung("in another way", ()), directory / "x.whl", WORKS, ("the first: it crashed",))

    monkeypatch.setattr(mend, "climb_down", climb_down)
    return verdicts, done


@pytest.mark.parametrize(
    ("verdict", "rebuild", "builds", "words"),
    [
        (WORKS, "slow", False, "it computes rightly on this processor (it uses AVX, AVX2, FMA, F16C)"),
        (UNPACKED, "broken", False, "as it was built it fails here (it crashed); it works without packed weights"),
        (UNPACKED, "slow", True, "llama.cpp does without packed weights, which make prompts faster; building it anew"),
        (Verdict((Attempt("full"),), ("SSE3",)), "slow", True, "does not use AVX, AVX2, FMA, F16C, which this"),
        (Verdict((Attempt("full"),), ("SSE3",)), "broken", False, "it computes rightly"),
        (NOWHERE, "broken", True, "llama.cpp does not work here (it crashed); building it anew"),
    ],
)
def test_what_is_built_when(machine, home, verdict, rebuild, builds, words):
    verdicts, done = machine
    verdicts += [verdict, WORKS]
    said, installed = [], []
    found = mend_llama(home, said.append, rebuild=rebuild, install=installed.append)
    assert words in said[0]
    assert len(done) == len(installed) == int(builds)
    if builds:
        assert said[1].startswith("  building llama.cpp ")
        assert said[2] == "  the first: it crashed"
        assert said[3].startswith(
            "Built in another way. llama.cpp: proved, it computes rightly on this processor (it uses"
        )
        assert found == WORKS


def test_nothing_is_built_without_leave(machine, home):
    verdicts, done = machine
    verdicts.append(NOWHERE)
    with pytest.raises(EngineError, match=r"does not work on this machine: it crashed.*localllm doctor --mend"):
        mend_llama(home, print)
    assert done == []


def test_a_full_disk_is_said_before_anything_is_built(machine, home, monkeypatch):
    verdicts, done = machine
    verdicts.append(NOWHERE)
    monkeypatch.setattr(mend.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(EngineError, match="2 GB"):
        mend_llama(home, print, rebuild="broken")
    assert done == []


def test_the_blas_in_a_line():
    own = Tried("OpenBLAS", "lib", "", "Prescott", 32.0)
    told = Tried("OpenBLAS", "lib", "SkylakeX", "SkylakeX", 149.0)
    assert blas_line(BlasVerdict((own,), own)) == "BLAS for MLX: OpenBLAS, Prescott, 32 GFLOP/s."
    assert blas_line(BlasVerdict((own, told), told)) == (
        "BLAS for MLX: OpenBLAS, SkylakeX, 149 GFLOP/s; by itself it took Prescott, 32 GFLOP/s."
    )
    assert "none that is fast" in blas_line(BlasVerdict((), None))


def test_the_command_of_the_set_up_script(home, capsys):
    assert mend.main([]) == 0
    assert capsys.readouterr().out.startswith("llama.cpp: ")
    assert list(Path(home.native).glob("llama-*.json"))


@needs_compiler
def test_the_command_on_a_machine_with_amx(odd_llama, home, capsys):
    odd_llama("amx")
    assert mend.main(["--rebuild", "broken"]) == 0
    assert "an illegal instruction (SIGILL)); it works without packed weights" in capsys.readouterr().out


@needs_compiler
def test_the_command_where_no_way_works(odd_llama, home, capsys):
    odd_llama("foreign")
    assert mend.main([]) == 1
    assert "localllm doctor --mend" in capsys.readouterr().err
