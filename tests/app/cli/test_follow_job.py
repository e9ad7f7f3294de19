import io
import json
import signal
import subprocess
import sys

import pytest

from app.cli.follow_job import follow
from app.cli.job_bars import JobBars, describe_metrics
from localllm.errors import JobError, JobFailedError
from localllm.jobs.events import Checkpoint, Done, Evaluation, Message, Progress, Record, Sample, State, Step, Unknown
from tests.fakes.jobs import ROOT, ended, running, wait_until


def test_a_result_goes_to_standard_output(start, capsys):
    assert follow(start("add", a=2, b=3)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["sum"] == 5
    assert "Grüße, 模型" in err


def test_a_summary_is_the_result_of_a_person(start, capsys):
    assert follow(start("add", a=2, b=3), show=lambda result: print(result["sum"])) == 0
    assert capsys.readouterr().out == "5\n"


def test_a_failure_is_the_jobs_own(start):
    with pytest.raises(JobFailedError) as raised:
        follow(start("fail"))
    assert (raised.value.message, raised.value.hint, raised.value.exit_code) == (
        "No room for the model.", "Free some.", 1,
    )  # fmt: skip


def test_a_death_is_a_failure(start):
    job = start("die")
    with pytest.raises(JobFailedError, match="without a word"):
        follow(job)


def test_a_job_that_somebody_else_cancels(jobs, start, capsys):
    job = running(start("until_cancelled", resumable=True))
    jobs.cancel(job)
    assert follow(job) == 130
    assert f"jobs resume {job.id}" in capsys.readouterr().err


def test_a_job_that_is_removed_while_it_is_watched(jobs, start):
    job = start("fail")
    ended(job)
    jobs.remove(job)
    with pytest.raises(JobError, match=f"Job {job.id} was removed"):
        follow(job)


def watch(home, job):
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "--home", str(home.root), "jobs", "watch", job.id],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_leaves_a_job_alone_and_says_how_to_come_back(start, home):
    job = running(start("until_cancelled"))
    watcher = watch(home, job)
    assert "loss" in watcher.stderr.readline()
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 130
    assert f"Job {job.id} goes on." in err
    assert f"jobs watch {job.id}" in err
    assert job.alive
    again = watch(home, job)
    (home.root / "finish").touch()
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert json.loads(out)["step"] > 0


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def shown(*events, terminal=False):
    stream = Terminal() if terminal else io.StringIO()
    bars = JobBars(stream)
    for seconds, event in events:
        bars.show(Record(1000 + seconds, event))
    bars.close()
    return stream.getvalue()


def test_stages_are_bars_with_the_events_own_times():
    text = shown(
        (0, Progress("convert", 0, 100, "blk.0", "B")),
        (10, Progress("convert", 50, 100, "blk.0", "B")),
        (20, Progress("convert", 100, 100, "blk.0", "B")),
        (20, Progress("write", 1, None, "x\x1b[31m")),
        (21, Done()),
    )
    assert "convert blk.0   50%  50 B of 100 B  5 B/s  0:10 left\n" in text
    assert "convert blk.0  100 B in 0:20  5 B/s\n" in text
    assert "write x␛[31m  1" in text


def test_a_count_goes_on_from_item_to_item():
    text = shown(
        (0, Progress("quantize", 1, 3, "token_embd")),
        (6, Progress("quantize", 2, 3, "blk.0")),
        (12, Progress("quantize", 3, 3, "blk.1")),
        (12, Progress("measure", 0, 3, "q8_0")),
        (18, Progress("measure", 0, 2, "q4_0")),
        (24, Progress("measure", 0, 2, "q4_1")),
        (25, Step(1, 2)),
        (26, Done()),
    )
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "quantize token_embd",
        "quantize blk.0",
        "quantize blk.1",
        "quantize",
        "measure q8_0",
        "measure q8_0",
        "measure q4_0",
        "measure q4_1",
        "measure",
        "step",
        "step",
    ]


def test_steps_have_their_figures():
    metrics = {"loss": 1.23456, "tokens_per_second": 812.4, "memory": 3.1e9, "learning_rate": 1e-4}
    text = shown((0, Step(1, 10, metrics)), (5, Step(2, 10, metrics)), (6, Evaluation(2, {"loss": 1.5})))
    assert "loss 1.235  812 tok/s  3.1 GB  lr 0.0001" in text
    assert "2 of 10" in text
    assert "step 2: held out: loss 1.5\n" in text


def test_lines_above_a_bar_on_a_terminal():
    text = shown((0, Step(1, 4)), (1, Message("warning", "Careful.")), (2, Step(2, 4)), terminal=True)
    assert "\r\x1b[KWarning: Careful.\n" in text
    assert text.count("\n") == 2


def test_everything_else_is_a_line():
    text = shown(
        (0, State("queued")),
        (0, State("waiting", "for job x: y")),
        (0, Sample(3, "p", "It\nis \x1b[2J me")),
        (0, Checkpoint(3, "out/3")),
        (0, Message("info", "Note.")),
        (0, Unknown("later", {})),
    )
    assert text.splitlines() == ["Waiting for job x: y.", "step 3 says: It is ␛[2J me", "step 3 saved: out/3", "Note."]


def test_figures_of_unknown_names():
    assert describe_metrics({"grad_norm": 0.5}) == "grad norm 0.5"


def test_a_second_heavy_job_says_whom_it_waits_for(start, home):
    first = running(start("held", title="the first", heavy=True, name="a"))
    second = start("held", heavy=True, name="b")
    watcher = watch(home, second)
    assert watcher.stderr.readline() == f"Waiting for job {first.id}: the first.\n"
    (home.root / "a").touch()
    (home.root / "b").touch()
    watcher.communicate(timeout=60)
    assert ended(second).state == "done"
    wait_until(lambda: not first.alive)
