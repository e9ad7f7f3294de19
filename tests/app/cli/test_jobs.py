import json
import threading
from functools import partial

import pytest

from app.cli.main import main
from localllm.jobs.store import JobStore
from tests.fakes.jobs import ended, running, wait_until


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    monkeypatch.setattr("app.cli.jobs.JobStore", partial(JobStore, worker="tests.fakes.job_worker"))


def test_without_jobs(home, capsys):
    assert main(["jobs"]) == 0
    assert "no jobs" in capsys.readouterr().err
    assert main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["jobs", "watch"]) == 1
    assert "No job runs" in capsys.readouterr().err
    assert main(["jobs", "show", "x"]) == 1
    assert main(["jobs", "rm"]) == 1


def test_list_show_cancel_resume_log_and_remove(start, home, capsys):
    first = start("fail", title="one \x1b[31m")
    ended(first)
    second = running(start("until_cancelled", title="two", resumable=True))
    wait_until(lambda: second.latest().step)
    assert main(["jobs"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "KIND", "TITLE", "STATE", "DONE", "STARTED", "TOOK"]
    assert [row.split()[0] for row in rows] == [second.id, first.id]
    assert "running" in rows[0]
    assert "%" in rows[0]
    assert "one ␛[31m  failed" in rows[1]

    assert main(["jobs", "rm", second.id]) == 1
    assert "runs" in capsys.readouterr().err
    assert main(["jobs", "cancel", second.id]) == 0
    assert "asked to save" in capsys.readouterr().out
    assert ended(second).state == "cancelled"
    assert main(["jobs", "cancel", second.id]) == 1
    assert "is cancelled" in capsys.readouterr().err

    assert main(["jobs", "resume", first.id]) == 1
    assert main(["jobs", "resume", second.id, "--detach"]) == 0
    running(second)
    (home.root / "finish").touch()
    capsys.readouterr()
    assert main(["jobs", "watch", second.id]) == 0
    step = json.loads(capsys.readouterr().out)["step"]

    assert main(["jobs", "show", second.id]) == 0
    out = capsys.readouterr().out
    assert f"id            {second.id}" in out
    assert "state         done" in out
    assert main(["jobs", "show", second.id, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["result"]["step"], shown["title"]) == ("done", step, "two")

    assert main(["jobs", "rm", "--ended"]) == 0
    assert capsys.readouterr().out.count("removed") == 2
    assert not list(home.jobs.iterdir())


def test_the_log_is_printable_and_can_be_cut(start, capsys):
    job = start("bug")
    ended(job)
    job.log_path.write_text("one\ntwo \x1b[2J\nthree\n")
    assert main(["jobs", "log", job.id]) == 0
    assert capsys.readouterr().out == "one\ntwo ␛[2J\nthree\n"
    assert main(["jobs", "log", job.id, "-n", "1"]) == 0
    assert capsys.readouterr().out == "three\n"
    assert main(["jobs", "log", job.id, "-n", "0"]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main(["jobs", "log", job.id, "-n", "-1"]) == 2
    assert "no -1 lines" in capsys.readouterr().err


def test_a_damaged_status_does_not_hide_the_others(start, capsys):
    first, second = start("fail"), start("fail")
    ended(first)
    ended(second)
    (first.directory / "status.json").write_text("{")
    assert main(["jobs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["jobs", "rm", "--ended"]) == 0


def test_a_job_whose_spec_is_damaged_can_be_removed_as_the_hint_says(start, home, capsys):
    job = start("fail")
    ended(job)
    (job.directory / "spec.json").write_text("{")
    assert main(["jobs", "show", job.id]) == 1
    assert f"localllm jobs rm {job.id}" in capsys.readouterr().err
    assert main(["jobs", "rm", job.id]) == 0
    assert not list(home.jobs.iterdir())


def test_a_job_that_runs_is_not_removed_though_its_spec_is_damaged(start, home, capsys):
    job = running(start("until_cancelled"))
    (job.directory / "spec.json").write_text("{")
    assert main(["jobs", "rm", job.id]) == 1
    assert "runs" in capsys.readouterr().err
    (home.root / "finish").touch()
    assert ended(job).state == "done"


def test_a_job_named_twice_is_removed_once(start, home, capsys):
    first, second = start("fail"), start("fail")
    ended(first)
    ended(second)
    assert main(["jobs", "rm", first.id, first.id[-3:], "--ended"]) == 0
    assert sorted(capsys.readouterr().out.split()[::2]) == sorted([first.id, second.id])
    assert not list(home.jobs.iterdir())


def test_a_job_named_twice_is_asked_once_to_end(start, capsys):
    job = running(start("until_cancelled"))
    assert main(["jobs", "cancel", job.id, job.id]) == 0
    assert "killed" not in capsys.readouterr().out
    assert ended(job).state == "cancelled"


def test_watch_takes_the_newest_that_runs(start, home, capsys):
    job = running(start("held", title="runs", name="go"))
    ended(start("fail"))
    threading.Timer(0.2, (home.root / "go").touch).start()
    assert main(["jobs", "watch"]) == 0
    assert f"{job.id}  test  runs" in capsys.readouterr().err
