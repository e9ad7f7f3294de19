"""``localllm quantize MODEL --report``, by real jobs, on a tiny model; and on the real one."""

import json
import os
import signal
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from app.cli.main import main
from app.cli.quantize_report import print_report
from localllm.checkup.privacy import check_files
from localllm.jobs.events import Message, Progress
from localllm.jobs.record import read_status
from localllm.jobs.store import JobStore
from localllm.models.names import ModelName
from localllm.models.store import ModelStore
from quant.measure.run import Speed
from quant.report.job import ReportWish, report_spec
from quant.report.record import kept_report
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT, ended, wait_until
from tests.fakes.models import put_model
from tests.fakes.reports import made_up_report, made_up_row

QUICK = ["--chunks", "3", "--no-speed"]


@pytest.fixture
def tiny(home, tmp_path, monkeypatch, capsys):
    """A tiny llama in the store as ``tiny:f16``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_embd=256, n_ff=256, n_layer=1)
    assert main(["pull", str(path), "--as", "tiny:f16"]) == 0
    capsys.readouterr()
    return ModelStore(home)


def scored(job):
    """What a job has measured, by its own events."""
    events = job.events()[0]
    return [
        event.stage.split()[1]
        for event in events
        if isinstance(event, Progress) and event.item == "score" and event.done == event.total
    ]


def last_job(home):
    return JobStore(home).list()[-1]


def test_a_table_a_plot_and_json(tiny, home, capsys):
    assert main(["quantize", "tiny", "--to", "q8_0"]) == 0
    capsys.readouterr()
    words = ["quantize", "tiny:f16", "--report", "--types", "q8_0,Q4_0,q2_k", *QUICK]
    assert main(words) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split() == ["model", "size", "bits", "perplexity", "KL", "KL", "99%", "top-1"]
    assert [line.replace(">", " ").split()[0] for line in lines[1:5]] == [":f16", ":q8_0", "q4_0", "q2_k"]
    assert "On 3 chunks of 256 tokens of our evaluation text (SHA-256 " in said.out
    assert lines[-1].startswith("Plot: ")
    ElementTree.parse(lines[-1].removeprefix("Plot: "))
    assert scored(last_job(home)) == ["tiny:f16", "tiny:q8_0", "q4_0", "q2_k"]

    report = kept_report(home, tiny.resolve("tiny:f16"))
    source, *rows = report.rows
    assert (source.kind, source.divergence.agreement) == ("source", 1)
    assert source.divergence.kl_max < 1e-9
    assert [row.kind for row in rows] == ["model", "type", "type"]
    assert 0 < rows[0].kl < rows[1].kl < rows[2].kl
    parameters = tiny.resolve("tiny:f16").parameters
    for row in report.rows:
        metadata = row.n_bytes - row.bits * parameters / 8
        assert 0 < metadata < 20_000, row.name
    assert rows[0].n_bytes == tiny.resolve("tiny:q8_0").size
    assert sorted(path.name for path in last_job(home).out.iterdir()) == ["report.json", "report.svg"]
    assert not list(home.partial.iterdir())
    assert len(tiny.list()) == 2, "nothing new is in the store"
    assert [finding.level for finding in check_files(home)] == ["ok"], "all of it is for this user alone"

    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert scored(last_job(home)) == [], "all of it was measured before"
    assert [row["name"] for row in record["rows"]] == ["tiny:f16", "tiny:q8_0", "q4_0", "q2_k"]
    assert main(["quantize", "tiny:f16", "--report", "--types", "q4_0,q3_k_m", *QUICK]) == 0
    assert scored(last_job(home)) == ["q3_k_m"]


def test_a_directory_and_mlx_count_too(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    assert main(["models", "export", "tiny:hf", "--to", "gguf:f32"]) == 0
    capsys.readouterr()
    assert main(["quantize", "tiny:hf", "--report", "--types", "q8_0,mlx-8bit,mlx-4bit", *QUICK]) == 0
    rows = {row.name: row for row in kept_report(home, ModelStore(home).resolve("tiny:hf")).rows}
    assert rows["tiny:hf"].kl < 1e-9
    assert rows["tiny:f32"].kl < 1e-4
    assert {name: row.engine for name, row in rows.items()} == {
        "tiny:hf": "llama.cpp",
        "tiny:f32": "llama.cpp",
        "q8_0": "llama.cpp",
        "mlx-8bit": "mlx",
        "mlx-4bit": "mlx",
    }
    assert rows["mlx-8bit"].kl < rows["mlx-4bit"].kl
    assert rows["mlx-8bit"].bits > rows["mlx-4bit"].bits > 4


def test_a_slow_model_is_not_said_to_stand_still(home, capsys):
    row = replace(made_up_row("q4_k_m", 10**8, 0.1), speed=Speed(9.97, 0.2218))
    print_report(made_up_report(put_model(home), rows=[row]))
    assert "10/0.22" in capsys.readouterr().out


def test_speed_is_measured_once(tiny, home, capsys):
    words = ["quantize", "tiny", "--report", "--types", "none", "--chunks", "2"]
    assert main([*words, "--no-speed"]) == 0
    assert "read/write" not in capsys.readouterr().out
    assert main(words) == 0
    assert "read/write" in capsys.readouterr().out
    speed = kept_report(home, tiny.resolve("tiny")).source.speed
    assert speed.prefill > 0
    assert speed.decode > 0
    assert scored(last_job(home)) == [], "its quality was measured before"
    assert main(words) == 0
    assert kept_report(home, tiny.resolve("tiny")).source.speed == speed


def test_a_text_of_ones_own_leaves_no_copy(tiny, home, tmp_path, capsys):
    text = tmp_path / "mine.txt"
    text.write_text("My secret garden is full of slugs. " * 200)
    assert main(["quantize", "tiny", "--report", "--types", "none", "--text", str(text), "--no-speed"]) == 0
    assert "of mine.txt (SHA-256" in capsys.readouterr().out
    kept = [path for path in [*home.measured.rglob("*"), *last_job(home).directory.rglob("*")] if path.is_file()]
    assert kept
    assert all(path.suffix != ".npy" and b"slugs" not in path.read_bytes() for path in kept)


def test_a_damaged_model_is_named_and_the_others_are_measured(tiny, home, capsys):
    for kind in ("q8_0", "q4_0"):
        assert main(["quantize", "tiny:f16", "--to", kind]) == 0
    path = tiny.file(tiny.get(ModelName("tiny", "q8_0")))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    put_model(home, "tiny", "short")
    (home.models / "tiny" / "odd").mkdir()
    capsys.readouterr()
    assert main(["quantize", "tiny:f16", "--report", "--types", "none", *QUICK]) == 0
    said = capsys.readouterr()
    assert "tiny:q8_0 is left out" in said.err
    assert "Not measured: tiny:q8_0. tiny:q8_0 is damaged: tiny-q8_0.gguf is not what it was." in said.out
    assert "Not measured: tiny:short. " in said.out
    assert "Not measured: tiny:odd. Its manifest cannot be read." in said.out
    assert [row.name for row in kept_report(home, tiny.get(ModelName("tiny", "f16"))).rows] == ["tiny:f16", "tiny:q4_0"]


def test_types_that_cannot_be_made_are_named(tiny, home, capsys):
    words = ["quantize", "tiny", "--report", "--types", "q8_0,iq2_xxs", "--imatrix", "none", *QUICK]
    assert main(words) == 0
    assert "Not measured: iq2_xxs. IQ2_XXS needs an importance matrix" in capsys.readouterr().out


def started(tiny, home):
    """A report under way that has kept its first figures."""
    jobs = JobStore(home)
    job = jobs.create(report_spec(tiny, ReportWish("tiny", ("q8_0", "q5_0", "q4_0", "q2_k"), "none", speed=False)))
    jobs.start(job)
    wait_until(lambda: list((home.measured / "quality").glob("*.json")) or job.status().has_ended)
    return jobs, job


def test_killed_and_resumed_it_measures_only_what_is_new(tiny, home):
    jobs, job = started(tiny, home)
    os.killpg(read_status(job.directory).pid, signal.SIGKILL)
    assert ended(job).state == "dead"
    kept = {path: path.stat().st_mtime_ns for path in (home.measured / "quality").glob("*.json")}
    assert 0 < len(kept) < 5
    before = scored(job)
    jobs.resume(job)
    status = ended(job)
    assert status.state == "done", status.message
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted({*before, *scored(job)}) == ["q2_k", "q4_0", "q5_0", "q8_0", "tiny:f16"]
    assert len(scored(job)) == 5, "none was measured twice"
    assert len(status.result["report"]["rows"]) == 5


def test_cancelled_it_leaves_what_it_has_measured_and_nothing_half(tiny, home):
    jobs, job = started(tiny, home)
    jobs.cancel(job)
    assert ended(job).state == "cancelled"
    assert not list(home.partial.iterdir())
    assert not list((home.measured / "quality").glob(".*"))
    assert not (home.measured / "reports").exists()
    jobs.resume(job)
    assert ended(job).state == "done"


def test_a_full_disk_is_told_and_nothing_half_is_left(tiny, home):
    jobs = JobStore(home, worker="tests.fakes.small_disk_job_worker")
    job = jobs.create(report_spec(tiny, ReportWish("tiny", ("q8_0",), "none", speed=False)))
    jobs.start(job)
    status = ended(job)
    assert status.state == "failed"
    assert "disk" in status.message
    assert not list(home.partial.iterdir())
    assert not list((home.measured / "quality").iterdir())
    usual = JobStore(home)
    usual.resume(job)
    assert ended(job).state == "done"


def test_what_a_model_predicted_goes_with_it(tiny, home, capsys):
    assert main(["quantize", "tiny", "--report", *QUICK]) == 0
    kept = home.measured / "quality"
    assert [path.name[:5] for path in kept.iterdir() if path.is_dir()] == ["tiny-"]
    figures = list(kept.glob("*.json"))
    assert main(["models", "rm", "-y", "tiny"]) == 0
    assert sorted(kept.iterdir()) == sorted(figures) != []


def test_too_little_text_fails(tiny, home, tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    assert main(["quantize", "tiny", "--report", "--text", str(text), *QUICK]) == 1
    assert "too short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tiny", "--report", "--types", "q9"], 2, "no type"),
        (["tiny", "--report", "--types", "f16"], 2, "already"),
        (["other", "--report"], 1, "no model"),
        (["tiny", "--report", "--text", "/nowhere/x.txt"], 2, "no file"),
        (["tiny", "--report", "--text", "~nobody-of-that-name/x.txt"], 2, "no file"),
        (["tiny", "--report", "--text", "x" * 300], 2, "no file"),
        (["tiny", "--report", "--imatrix", "~nobody-of-that-name/x.txt"], 2, "no file"),
        (["tiny", "--report", "--imatrix", "x" * 300], 2, "no file"),
        (["tiny", "--report", "--to", "q8_0"], 2, "either"),
        (["tiny", "--report", "--as", "x"], 2, "keeps no model"),
        (["tiny", "--report", "--dry-run"], 2, "keeps no model"),
        (["tiny", "--report", "--chunks", "-1"], 2, "at least 1"),
        (["tiny", "--to", "q8_0", "--types", "q8_0"], 2, "go with --report"),
        (["tiny", "--to", "q8_0", "--no-speed"], 2, "go with --report"),
        (["tiny", "--report", "--ctx", "5"], 2, "goes with --fit"),
    ],
)
def test_what_cannot_be_is_said_before_a_job_begins(tiny, home, capsys, words, code, said):
    before = len(JobStore(home).list())
    assert main(["quantize", *words]) == code
    assert said in capsys.readouterr().err
    assert len(JobStore(home).list()) == before


def test_the_usual_types_are_smaller_than_the_model(home):
    put_model(home, "half", "f16", 2_000_000, parameters=1_000_000)
    put_model(home, "four", "q4_1", 650_000, parameters=1_000_000)
    store = ModelStore(home)
    assert report_spec(store, ReportWish("half")).arguments["types"][0] == "q8_0"
    assert report_spec(store, ReportWish("four")).arguments["types"][:2] == ["q4_k_m", "iq4_xs"]


def test_an_embedder_is_refused(home, capsys):
    put_model(home, "all-minilm-l6-v2", "f16", architecture="bert")
    assert main(["quantize", "all-minilm-l6-v2", "--report"]) == 2
    assert "embedder" in capsys.readouterr().err


def test_a_note_is_said_once(home, capsys):
    rows = [made_up_row(name, 10**8, 0.01, notes=("Requantized.",)) for name in ("q4_0", "q4_1")]
    print_report(made_up_report(put_model(home), rows=[*rows, made_up_row("q2_k", 10**7, 0.2)]))
    assert capsys.readouterr().err == "Note: q4_0, q4_1: Requantized.\n"


def test_names_of_files_and_notes_do_not_reach_the_terminal_as_they_are(home, capsys):
    rows = [made_up_row("q4_0", 10**8, 0.01, notes=("a\x1b[2J",))]
    report = made_up_report(put_model(home), rows=rows, skipped=[("q2_k", "b\x1b[2J\nc")])
    print_report(replace(report, text="d\x1b[2J.txt"))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "of d␛[2J.txt (SHA" in out
    assert "q2_k. b␛[2J c" in out
    assert err == "Note: q4_0: a␛[2J\n"


@pytest.mark.parametrize("width", [80, 60])
def test_the_table_stays_within_the_terminal(home, capsys, width):
    rows = [made_up_row(f"smollm2-135m:mlx-mixed-{i}", 10**8 + i, 0.01 * 3**i, kind="model") for i in range(4)]
    print_report(made_up_report(put_model(home), rows=rows), width)
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert max(map(len, table.splitlines())) <= width
    assert "perplexity" in table
    assert "KL" in table


@pytest.mark.model
def test_the_real_starter(starter_home, monkeypatch, capsys):
    """On two chunks: enough to tell types apart that differ by a factor of two and more."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = [
        "quantize",
        "starter",
        "--report",
        "--types",
        "q8_0,q4_0,q2_k",
        "--imatrix",
        "none",
        *QUICK,
        "--json",
        "--chunks",
        "2",
    ]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    rows = {row["type"]: row for row in record["rows"]}
    kl = {name: row["quality"]["divergence"]["kl_mean"] for name, row in rows.items()}
    assert kl["q4_1"] < 1e-9
    assert kl["q4_1"] < kl["q8_0"] < kl["q4_0"] < kl["q2_k"]
    assert rows["q8_0"]["beaten_by"] == "smollm2-135m:q4_1", "larger than the source, and no better"
    # Rows of 576 are no multiple of 256: what is called q2_k has far more bits, and the report says so.
    assert rows["q2_k"]["bits"] > 4
    assert "another type than asked" in " ".join(rows["q2_k"]["notes"])
    assert 4 < rows["q4_1"]["quality"]["perplexity"]["perplexity"] < 60
    parameters = ModelStore(starter_home).resolve("starter").parameters
    for row in rows.values():
        assert 0 < row["n_bytes"] - row["bits"] * parameters / 8 < 4_000_000, row["name"]  # the vocabulary
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == record["rows"]
    told = last_job(starter_home).events()[0]
    assert not [event for event in told if isinstance(event, Progress | Message)], "nothing was measured again"
