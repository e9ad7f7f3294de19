"""Real detached processes."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from localllm.errors import JobError
from localllm.jobs.events import Cancelled, Checkpoint, Done, Failed, Message, State, Step
from localllm.jobs.record import JobSpec, read_status
from localllm.jobs.store import JobStore
from localllm.jobs.worker import PACKAGES, find_entry
from tests.fakes.jobs import ROOT, ended, running, wait_until


def states(job):
    return [event.state for event in job.events()[0] if isinstance(event, State)]


def test_a_result(start, home):
    job = start("add", a=2, b=3)
    status = ended(job)
    assert (status.state, status.exit_code) == ("done", 0)
    assert status.result == {"sum": 5, "cwd": str(job.directory.resolve()), "home": str(home.root)}
    assert status.started
    assert status.ended >= status.started
    events = job.events()[0]
    assert events[:2] == [State("queued"), State("running")]
    assert events[2] == Message("info", "Grüße, 模型 ?")
    assert events[3] == Done(status.result)
    assert sorted(path.name for path in job.directory.iterdir()) == [
        "events.jsonl", "lock", "log.txt", "out", "spec.json", "status.json",
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o077 == 0 for path in job.directory.iterdir())


def test_what_it_makes_is_for_this_user_alone(start, home):
    assert ended(start("make_files")).state == "done"
    found = [home.root / "kept", *(home.root / "kept").rglob("*")]
    assert [path.stat().st_mode & 0o777 for path in found] == [0o700, 0o700, 0o600]


def test_an_error_of_a_person_is_told_as_it_is(start):
    job = start("fail")
    status = ended(job)
    assert (status.state, status.message, status.hint) == ("failed", "No room for the model.", "Free some.")
    assert job.events()[0][-1] == Failed("No room for the model.", "Free some.", 1)
    assert job.log_path.read_text() == ""


@pytest.mark.parametrize(("entry", "known"), [("bug", "KeyError: 'missing'"), ("no_json", "")])
def test_a_bug_is_a_line_and_a_traceback_in_the_log(start, entry, known):
    job = start(entry)
    status = ended(job)
    assert status.state == "failed"
    assert f"jobs log {job.id}" in status.hint
    assert known in job.log_path.read_text()


@pytest.mark.parametrize(
    "entry", ["os:getcwd", "tests.fakes:x", "localllm", "localllm.nothing:run", "localllm.paths:x"]
)
def test_only_functions_of_this_program_are_run(entry):
    with pytest.raises(JobError):
        find_entry(entry, PACKAGES)


def test_a_module_that_lacks_a_library_is_a_bug(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError):
        find_entry("lacking:run", ("lacking",))


def test_an_unknown_entry_fails(jobs, start):
    status = ended(start("nothing"))
    assert status.state == "failed"
    assert "no 'tests.fakes.job_entries:nothing'" in status.message


def test_kill_9_is_seen_at_once(start):
    job = running(start("until_cancelled"))
    os.kill(read_status(job.directory).pid, signal.SIGKILL)
    assert ended(job).state == "dead"


def test_a_native_crash_is_seen_and_where_it_was_is_in_the_log(start):
    job = start("die")
    assert ended(job).state == "dead"
    assert "Fatal Python error: Aborted" in job.log_path.read_text()


def test_cancel_saves_and_resume_goes_on(jobs, start, home):
    job = running(start("until_cancelled", resumable=True))
    wait_until(lambda: job.latest().step)
    with pytest.raises(JobError, match="running"):
        jobs.resume(job)
    with pytest.raises(JobError, match="runs"):
        jobs.remove(job)
    jobs.cancel(job)
    assert ended(job).state == "cancelled"
    events = job.events()[0]
    assert events[-1] == Cancelled()
    assert isinstance(events[-2], Checkpoint)
    offset = job.events_end()
    jobs.resume(job)
    assert not job.cancel_path.exists()
    (home.root / "finish").touch()
    status = ended(job)
    assert status.state == "done"
    assert status.result["step"] >= events[-2].step
    steps = [event.step for event in job.events(offset)[0] if isinstance(event, Step)]
    assert all(step > events[-2].step for step in steps)


def test_what_cannot_go_on_is_not_resumed(jobs, start):
    job = start("fail")
    ended(job)
    with pytest.raises(JobError, match="cannot be resumed"):
        jobs.resume(job)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_cancel(start, number):
    job = running(start("until_cancelled"))
    os.kill(read_status(job.directory).pid, number)
    assert ended(job).state == "cancelled"


def test_a_closed_terminal_means_nothing(start, home):
    job = running(start("until_cancelled"))
    os.kill(read_status(job.directory).pid, signal.SIGHUP)
    (home.root / "finish").touch()
    assert ended(job).state == "done"


def test_it_outlives_whoever_started_it(home, jobs):
    script = (
        "import sys; from pathlib import Path; from localllm.jobs.record import JobSpec; "
        "from localllm.jobs.store import JobStore; from localllm.paths import Home; "
        "store = JobStore(Home(Path(sys.argv[1])), worker='tests.fakes.job_worker'); "
        "store.start(store.create(JobSpec('t', 't', 'tests.fakes.job_entries:until_cancelled', heavy=False)))"
    )
    # As a terminal does that is closed: the session's leader ends, and its group is hung up on.
    subprocess.run([sys.executable, "-c", script, str(home.root)], cwd=ROOT, check=True, start_new_session=True)
    (job,) = jobs.list()
    running(job)
    assert os.getsid(read_status(job.directory).pid) == read_status(job.directory).pid
    (home.root / "finish").touch()
    assert ended(job).state == "done"


def test_two_cancels_kill_it_with_its_children(jobs, start):
    job = running(start("deaf"))
    wait_until(lambda: (job.out / "child").exists() and (job.out / "child").read_text())
    child = int((job.out / "child").read_text())
    jobs.cancel(job)
    jobs.cancel(job)
    assert ended(job).state == "cancelled"
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_cancel_now_does_not_wait(jobs, start):
    job = running(start("deaf"))
    jobs.cancel(job, now=True)
    assert ended(job).state == "cancelled"


def test_a_deaf_job_is_ended_after_its_grace(jobs, home):
    hasty = JobStore(home, worker="tests.fakes.hasty_job_worker")
    job = hasty.create(JobSpec("test", "deaf", "tests.fakes.job_entries:deaf", heavy=False))
    hasty.start(job)
    running(job)
    jobs.cancel(job)
    status = ended(job)
    assert status.state == "cancelled"
    assert job.events()[0][-1] == Cancelled()


def test_two_signals_end_it(start):
    job = running(start("deaf"))
    pid = read_status(job.directory).pid

    def told_again():
        if job.alive:
            os.kill(pid, signal.SIGTERM)  # two that come at once are one to the system
        return not job.alive

    wait_until(told_again)
    assert job.status().state == "cancelled"


def test_what_waits_can_be_interrupted(jobs, start):
    job = running(start("interruptible"))
    wait_until((job.out / "here").exists)
    jobs.cancel(job)
    assert ended(job).state == "cancelled"


def test_a_forked_child_does_not_hold_the_jobs_lock(start, home):
    job = start("forks")
    status = ended(job)
    assert status.state == "done"
    assert psutil.pid_exists(status.result["child"])
    (home.root / "finish").touch()


def test_one_heavy_job_at_a_time_in_the_order_of_their_creation(start, home):
    first = running(start("held", title="the first", heavy=True, name="a"))
    second = start("held", title="the second", heavy=True, name="b")
    wait_until(lambda: second.status().state == "waiting")
    third = start("held", heavy=True, name="c")
    wait_until(lambda: third.status().state == "waiting")
    assert second.status().detail == f"for job {first.id}: the first"
    light = start("add", a=1, b=1)
    assert ended(light).state == "done"
    (home.root / "a").touch()
    assert ended(first).state == "done"
    running(second)
    wait_until(lambda: third.status().detail == f"for job {second.id}: the second")
    os.kill(read_status(second.directory).pid, signal.SIGKILL)
    running(third)
    (home.root / "c").touch()
    assert ended(third).state == "done"
    assert states(third) == ["queued", "waiting", "waiting", "running"]
    assert not [path for path in home.locks.iterdir() if path.name.startswith("accelerator-")]


def test_a_job_that_waits_can_be_cancelled(jobs, start):
    running(start("held", heavy=True, name="a"))
    second = start("held", heavy=True, name="b")
    wait_until(lambda: second.status().state == "waiting")
    jobs.cancel(second)
    assert ended(second).state == "cancelled"
