"""``localllm doctor`` prints every section, and its exit code says whether there is a problem."""

import json

import pytest

from app.cli import doctor
from app.cli.main import main
from localllm.checkup import engines
from localllm.checkup.finding import Finding, Section


@pytest.fixture
def sections(monkeypatch):
    """What the doctor finds, in place of a look at this machine."""
    found: list[Section] = []
    monkeypatch.setattr(doctor, "examine", lambda home: iter(found))
    return found


@pytest.fixture
def no_probes(monkeypatch):
    """Engines that answer at once."""
    monkeypatch.setattr(engines, "check_llama", lambda: [Finding("ok", "llama.cpp loads")])
    monkeypatch.setattr(engines, "check_mlx", lambda blas: [Finding("ok", "MLX loads")])


def test_the_whole_report_on_this_machine(home, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert titles[:-1] == ["Machine", "Python", "Engines", "Home", "Privacy"]
    assert "llama.cpp loads" in out
    assert "only you may enter" in out
    assert "No telemetry" in out


def test_json_is_one_object(home, capsys, no_probes):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [section["title"] for section in report["sections"]][-1] == "Privacy"
    assert set(report["sections"][0]["findings"][0]) == {"level", "text", "hint"}


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
