"""``localllm doctor`` prints every section, and its exit code says whether there is a problem."""

import json

import pytest

from app.cli import doctor
from app.cli.main import main
from localllm.checkup import engines
from localllm.checkup.finding import Finding, Section
from localllm.errors import EngineError
from localllm.native import blas, llama_verdict, mend
from localllm.native.blas import BlasVerdict, Tried
from localllm.native.llama_verdict import Attempt, Verdict
from tests.fakes.machines import needs_compiler

FULL, NO_BLAS = Verdict((Attempt("full"),)), BlasVerdict((), None)


@pytest.fixture
def sections(monkeypatch):
    """What the doctor finds, in place of a look at this machine."""
    found: list[Section] = []
    monkeypatch.setattr(doctor, "examine", lambda home: iter(found))
    return found


@pytest.fixture
def no_probes(monkeypatch):
    """Engines that answer at once."""
    monkeypatch.setattr(llama_verdict, "prove_llama", lambda home: FULL)
    monkeypatch.setattr(blas, "prove_blas", lambda home: NO_BLAS)
    monkeypatch.setattr(engines, "check_llama", lambda verdict: [Finding("ok", "llama.cpp computes rightly")])
    monkeypatch.setattr(engines, "check_mlx", lambda blas: [Finding("ok", "MLX loads")])


def test_the_whole_report_on_this_machine(home, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert titles[:-1] == ["Machine", "Python", "Engines", "Home", "Privacy"]
    assert "llama.cpp computes rightly, alone and in batches" in out
    assert "only you may enter" in out
    assert "No telemetry" in out


def test_json_is_one_object(home, capsys, no_probes):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [section["title"] for section in report["sections"]][-1] == "Privacy"
    assert set(report["sections"][0]["findings"][0]) == {"level", "text", "hint"}


def test_mending_says_what_it_does_before_the_report(home, capsys, monkeypatch, sections):
    asked = []

    def mend_llama(home, say, **how):
        asked.append(how)
        say("llama.cpp: proved.")

    found = Tried("OpenBLAS", "libopenblas.so.0", "", "Zen", 90.0)
    monkeypatch.setattr(mend, "mend_llama", mend_llama)
    monkeypatch.setattr(blas, "needs_blas", lambda: True)
    monkeypatch.setattr(blas, "prove_blas", lambda home, *, anew: BlasVerdict((found,), found))
    sections.append(Section("Part", (Finding("ok", "a thing"),)))
    assert main(["doctor", "--mend", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["llama.cpp: proved.", "BLAS for MLX: OpenBLAS, Zen, 90 GFLOP/s."]
    assert json.loads(captured.out)["ok"] is True
    assert asked == [{"anew": True, "rebuild": "slow"}]


def test_what_cannot_be_mended_is_an_error(home, capsys, monkeypatch):
    def mend_llama(home, say, **how):
        raise EngineError("llama-cpp-python could not be built: no compiler.", "It needs one.")

    monkeypatch.setattr(mend, "mend_llama", mend_llama)
    assert main(["doctor", "--mend"]) == 1
    assert "could not be built: no compiler." in capsys.readouterr().err


@needs_compiler
def test_a_machine_with_amx_is_told_what_was_found_and_what_would_be_faster(odd_llama, home, capsys):
    odd_llama("amx")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert (
        "llama.cpp works without packed weights: as it was built it fails here (an illegal instruction (SIGILL))" in out
    )
    assert "`localllm doctor --mend` builds it for this machine" in out


def test_wrong_settings_are_reported_and_the_rest_goes_on(home, capsys, no_probes):
    home.settings_file.write_text("colour = 'red'\n")
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "PROBLEM  There is no setting 'colour'" in captured.out
    assert "Privacy" in captured.out


@pytest.mark.parametrize(
    ("levels", "code", "summary"),
    [
        (["ok", "ok"], 0, "All is well."),
        (["ok", "warn"], 0, "1 warning; what to do stands under each."),
        (["problem", "warn", "warn"], 1, "1 problem and 2 warnings; what to do stands under each."),
        (["problem", "problem"], 1, "2 problems; what to do stands under each."),
    ],
)
def test_the_summary_and_the_exit_code(sections, capsys, levels, code, summary):
    sections.append(Section("Part", tuple(Finding(level, "a thing", "a hint") for level in levels)))
    assert main(["doctor"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == summary
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_escape_sequences_are_shown_not_sent(sections, capsys):
    sections.append(Section("Part", (Finding("warn", "a \x1b[31mred\x1b[0m name", "\x07 bell"),)))
    main(["doctor"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
