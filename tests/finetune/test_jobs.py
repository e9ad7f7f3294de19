"""Real trainings, as jobs, that are killed, cancelled, out of room, or in each other's way."""

import json
import os
import signal
import subprocess
import sys

import pytest

from app.cli.main import main
from finetune.jobs import train_spec
from finetune.observer import read_history
from finetune.recipe import make_recipe
from localllm.adapters import AdapterStore
from localllm.errors import UsageError
from localllm.jobs.events import Checkpoint, State
from localllm.jobs.record import read_status
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT, ended, wait_until

N_STEPS = 14


@pytest.fixture
def rows(home, tmp_path, monkeypatch):
    """A tiny llama in the store as ``tiny:hf``, and rows to learn."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LOCALLLM_GPU_LAYERS", "0")
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Say {i}. ", "completion": f"It is {i}."}) + "\n" for i in range(40))
    )
    yield path
    for job in JobStore(home).list():
        if (pid := read_status(job.directory).pid) and job.alive:
            os.killpg(pid, signal.SIGKILL)
        wait_until(lambda job=job: not job.alive)


def make_job(home, rows, name, **changes):
    fields = {"rank": 4, "dropout": 0.1, "learning_rate": 5e-3, "batch_tokens": 128, "samples": 0, "patience": 0}
    fields |= {"steps": N_STEPS, "save_every": 5, "eval_every": 4, "name": name, **changes}
    recipe = make_recipe({"model": "tiny:hf", "data": [str(rows)], **fields})
    return JobStore(home).create(train_spec(ModelStore(home), recipe))


def figures(job):
    """Everything that the run computed, without its times."""
    kept = ("step", "loss", "valid_loss", "best", "gradient_norm", "learning_rate", "supervised")
    return [{name: record.get(name) for name in kept} for record in read_history(job.out)]


def updates_told(job):
    lines = (job.out / "history.jsonl").read_text().splitlines() if (job.out / "history.jsonl").exists() else []
    return [record["step"] for record in map(json.loads, lines) if "loss" in record]


def weights(home, name):
    store = AdapterStore(home)
    return (store.directory(store.resolve(name)) / "adapters.safetensors").read_bytes()


def told_until(stream, words):
    """The lines up to the one with these words, or to the end."""
    for line in stream:
        yield line
        if words in line:
            return


@pytest.mark.slow
def test_whatever_breaks_a_training_off_it_goes_on_with_the_same_losses(rows, home, monkeypatch, capsys):
    whole = make_job(home, rows, "whole")
    JobStore(home).start(whole)
    assert ended(whole).state == "done"
    saved = [event.step for event in whole.events()[0] if isinstance(event, Checkpoint)]
    assert saved == [4, 5, 8, 10, 12, 14]  # every evaluation was the best so far

    job = make_job(home, rows, "broken")
    doomed = JobStore(home, worker="tests.fakes.doomed_worker")
    checkpoints = job.directory / "checkpoints"

    def broken_off(doom, state):
        """Run into ``doom``; return the updates that were told on the way."""
        before = len(updates_told(job))
        monkeypatch.setenv("DOOM", doom)
        (doomed.resume if before else doomed.start)(job)
        if state == "cancelled":
            wait_until(lambda: updates_told(job)[-1:] == [6])
            assert main(["jobs", "cancel", job.id]) == 0
        status = ended(job)
        assert status.state == state, status
        return updates_told(job)[before:], status

    assert broken_off("update 3", "dead")[0] == [1, 2, 3]
    assert not checkpoints.exists()
    assert broken_off("wait 6", "cancelled")[0] == [1, 2, 3, 4, 5, 6]
    assert (checkpoints / "step-000006").is_dir()  # a cancel loses nothing
    told, status = broken_off("update 7", "dead")
    assert told == [7]
    assert "ended without a word" in status.message
    assert f"localllm jobs resume {job.id}" in status.hint
    told, status = broken_off("full 9", "failed")
    assert told == [7, 8, 9, 10]
    assert "step-000010 could not be written" in status.message
    assert "Make room and resume" in status.hint
    assert status.exit_code == 1
    assert broken_off("write step-000010", "dead")[0] == [9, 10]
    assert broken_off("replace best", "dead")[0] == [9, 10, 11, 12]
    capsys.readouterr()
    assert main(["jobs", "resume", job.id]) == 0
    assert "tiny+broken" in capsys.readouterr().out
    assert updates_told(job)[-4:] == [11, 12, 13, 14]

    assert figures(job) == figures(whole)
    assert weights(home, "broken") == weights(home, "whole")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best", "step-000012", "step-000014"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "called"), [("lora", "tiny+late"), ("full", "tiny-late:mlx")])
def test_a_training_killed_after_its_last_step_is_done_when_it_goes_on(rows, home, monkeypatch, capsys, method, called):
    job = make_job(home, rows, "late", steps=2, method=method)
    monkeypatch.setenv("DOOM", "installed -")
    JobStore(home, worker="tests.fakes.doomed_worker").start(job)
    assert ended(job).state == "dead"
    told = updates_told(job)
    capsys.readouterr()
    assert main(["jobs", "resume", job.id]) == 0
    assert f"Try it: localllm chat {called}" in capsys.readouterr().out
    assert updates_told(job) == told == [1, 2]
    # Another job still may not take the name.
    with pytest.raises(UsageError, match="already"):
        make_job(home, rows, "late", method=method)


@pytest.mark.slow
def test_a_second_training_waits_for_the_first_and_says_so(rows, home, monkeypatch, capsys):
    monkeypatch.setenv("DOOM", "wait 2")
    first = make_job(home, rows, "first")
    JobStore(home, worker="tests.fakes.doomed_worker").start(first)
    wait_until(lambda: updates_told(first) == [1, 2])
    second = make_job(home, rows, "second", steps=2)
    JobStore(home).start(second)
    wait_until(lambda: second.status().state == "waiting")
    # A process, as from a second terminal: two commands at once in one process would share its logging.
    command = [sys.executable, "-c", "from app.cli.main import main; raise SystemExit(main())", "jobs", "watch"]
    watcher = subprocess.Popen([*command, second.id], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert f"Waiting for job {first.id}: tiny:hf on " in "".join(told_until(watcher.stderr, "Waiting"))
    assert second.status().detail == f"for job {first.id}: tiny:hf on {rows}"
    assert main(["jobs", "cancel", first.id]) == 0
    assert ended(first).state == "cancelled"
    assert ended(second).state == "done"
    out, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    states = [event.state for event in second.events()[0] if isinstance(event, State)]
    assert states == ["queued", "waiting", "running"]
    assert "tiny+second" in out
