"""Watching a training: jobs of a fake tell what a test asks for, and die as it wants."""

import os
import signal

import pytest

from app.tui.screens.chat import ChatScreen
from app.tui.screens.dialogs import ConfirmDialog
from app.tui.screens.jobs import JobsScreen
from app.tui.screens.train import TrainScreen
from app.tui.screens.train_dialogs import TrainingsDialog
from app.tui.screens.train_run import TrainRunScreen
from app.tui.train_setup import recipe_of
from app.tui.trainings import Curve, RunReader, training_name
from localllm.jobs.event_log import EventWriter
from localllm.jobs.events import Checkpoint, Evaluation, Message, Progress, Record, Sample, State, Step
from localllm.jobs.job import EVENTS
from localllm.jobs.locks import take
from localllm.jobs.record import JobSpec, JobStatus, read_status, write_status
from tests.app.tui.conftest import NOON
from tests.app.tui.test_chat import notices
from tests.app.tui.test_hostile import HOSTILE, assert_clean
from tests.app.tui.test_models import wait_long
from tests.app.tui.test_windows import options
from tests.fakes.jobs import ended, running
from tests.fakes.train_entries import metrics


@pytest.fixture
def train(jobs):
    """``train(name, …)``: a training that runs; ``steps`` in the home says how far it goes."""

    def started(name="zorba", *, heavy=False, resumable=True, **arguments):
        given = {"recipe": {"model": "smollm2-135m:q4_1", "name": name}, **arguments}
        entry = "tests.fakes.train_entries:train"
        job = jobs.create(JobSpec("finetune", "rows", entry, given, heavy=heavy, resumable=resumable))
        jobs.start(job)
        return job

    return started


@pytest.fixture
def told(jobs, monkeypatch):
    """``told(name, status, *events)``: a training that has told this; the events are ten seconds apart."""
    moments = iter(range(100))
    monkeypatch.setattr("localllm.jobs.store.time.time", lambda: NOON + next(moments))

    def make(name, status, *events):
        given = {"recipe": {"model": "smollm2-135m:q4_1", "name": name}}
        job = jobs.create(JobSpec("finetune", "rows", "tests.fakes.train_entries:train", given, resumable=True))
        writer = EventWriter(job.directory / EVENTS)
        for index, event in enumerate((State("queued"), *events)):
            writer.write(Record(NOON + 10 * index, event))
        writer.close()
        write_status(job.directory, status)
        return job

    return make


async def watched(pilot, settle):
    await settle(pilot)
    await pilot.press("f10")
    await wait_long(pilot, lambda: isinstance(pilot.app.screen, TrainRunScreen))


def head(app):
    return str(app.screen.query_one("#run-head").render())


def plot(app):
    return str(app.screen.query_one("#run-plot").render())


def said(app):
    return str(app.screen.query_one("#run-text").render())


async def test_watch_cancel_resume_and_done(app, train, home, settle):
    (home.root / "steps").write_text("3")
    job = running(train())
    async with app.run_test(size=(120, 40)) as pilot:
        await watched(pilot, settle)
        await wait_long(pilot, lambda: "update 3 of 1,000" in head(app) and "saved at 3" in head(app))
        for words in (
            "▸ running",
            "loss 1.333",
            "held out 2.500 → 1.333",
            "200 tok/s learnt",
            "memory 2.5 GB of 3.0 GB expected",
            "rate 0.0002",
            "gradient 0.5",
        ):
            assert words in head(app), words
        await wait_long(pilot, lambda: "> Who are you?\n  I am Zorba." in said(app))
        assert "Rows: 5 messages." in said(app)
        assert plot(app).count("●") == 3  # one in the legend
        await pilot.press("c")
        ended(job)
        await wait_long(pilot, lambda: "· cancelled" in head(app) and "r goes on from update 3." in head(app))
        (home.root / "steps").write_text("5")
        await pilot.press("c")  # it does not run: no key for that
        await pilot.press("r")
        await wait_long(pilot, lambda: "▸ running   update 5 of 1,000" in head(app))
        (home.root / "finish").touch()
        await wait_long(pilot, lambda: "✓ done" in head(app))
        await wait_long(pilot, lambda: "Held-out loss 2.500 before, 1.200 after. Enter chats with it." in head(app))
        await pilot.press("enter")
        await wait_long(pilot, lambda: "There is no adapter 'zorba'" in notices(app))


async def test_leaving_and_quitting_end_nothing_and_it_is_found_again(make_app, model, train, home, settle):
    (home.root / "steps").write_text("2")
    job = running(train())

    async def look():
        app = make_app()
        async with app.run_test() as pilot:
            await watched(pilot, settle)
            await wait_long(pilot, lambda: "update 2 of 1,000" in head(app))
            await pilot.press("escape")
            await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
            await pilot.press("escape")
            await wait_long(pilot, lambda: isinstance(app.screen, ChatScreen))
            await pilot.press("f10")
            await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen))
            await pilot.press("f5")
            await wait_long(pilot, lambda: isinstance(app.screen, JobsScreen))
            await pilot.press("f10")
            await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen))
            await pilot.press("f10")
            await wait_long(pilot, lambda: isinstance(app.screen, ChatScreen))
            assert "1 job goes on: finetune rows" in notices(app)
            await pilot.press("ctrl+q")

    for _ in range(2):
        await look()
        assert job.alive


async def test_the_jobs_lead_to_any_training(app, told, settle):
    told("first", JobStatus("done", started=NOON, ended=NOON + 5), Step(1, 4, metrics(1)))
    told("second", JobStatus("failed", started=NOON, ended=NOON + 5, message="Broken."), Step(2, 4, metrics(2)))

    async def jobs_opened():
        await pilot.press("f5")
        await wait_long(pilot, lambda: isinstance(app.screen, JobsScreen) and len(options(app)) == 2)
        await settle(pilot)

    async with app.run_test() as pilot:
        await settle(pilot)
        await jobs_opened()
        await pilot.press("enter")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen) and "failed" in head(app))
        assert "second" in str(app.screen.query_one("#run-title").render())
        await jobs_opened()
        await pilot.press("down", "t")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen) and "done" in head(app))
        assert "first" in str(app.screen.query_one("#run-title").render())
        await pilot.press("escape")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        await pilot.press("escape")
        await wait_long(pilot, lambda: isinstance(app.screen, ChatScreen))


async def test_killed_it_is_seen_as_such_and_goes_on(app, train, home, settle):
    (home.root / "steps").write_text("4")
    job = running(train())
    async with app.run_test() as pilot:
        await watched(pilot, settle)
        await wait_long(pilot, lambda: "saved at 4" in head(app))
        (home.root / "steps").write_text("0")
        (home.root / "fall").touch()
        await wait_long(pilot, lambda: "✗ dead" in head(app))
        assert "ended without a word" in " ".join(head(app).split())
        assert "r goes on from update 4." in head(app)
        (home.root / "fall").unlink()
        (home.root / "steps").write_text("6")
        await pilot.press("r")
        await wait_long(pilot, lambda: "update 6 of 1,000" in head(app))
        assert job.alive


async def test_one_that_does_not_end_is_killed_after_a_question(app, train, home, settle):
    (home.root / "steps").write_text("1")
    job = running(train(deaf=True))
    async with app.run_test() as pilot:
        await watched(pilot, settle)
        await wait_long(pilot, lambda: "update 1 of" in head(app))
        await pilot.press("c")
        await wait_long(pilot, lambda: job.cancel_path.exists())
        await pilot.press("c")
        await wait_long(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("enter")
        assert job.alive
        await pilot.press("c")
        await wait_long(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_long(pilot, lambda: "· cancelled" in head(app))
        assert not job.alive


async def test_a_second_one_waits_for_the_first_and_says_so(app, train, home, settle):
    first = running(train("first", heavy=True))
    second = train("second", heavy=True)
    async with app.run_test(size=(120, 40)) as pilot:
        await watched(pilot, settle)
        await wait_long(pilot, lambda: f"waiting for job {first.id}" in head(app))
        await pilot.press("t")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainingsDialog))
        assert [option.split()[:2] for option in options(app)] == [
            ["waiting", "smollm2-135m:q4_1+second"],
            ["running", "smollm2-135m:q4_1+first"],
        ]
        await pilot.press("j", "enter")
        await wait_long(pilot, lambda: "▸ running" in head(app))
        assert "+first" in str(app.screen.query_one("#run-title").render())
        await pilot.press("c")
        ended(first)
        await pilot.press("escape", "t")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainingsDialog))
        await pilot.press("enter")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen) and "▸ running" in head(app))
        assert second.status().state == "running"


async def test_two_windows_show_the_same_and_one_may_remove_it(make_app, model, train, jobs, home, settle):
    (home.root / "steps").write_text("2")
    job = running(train())
    one, other = make_app(), make_app()
    async with one.run_test() as pilot, other.run_test() as second:
        await watched(pilot, settle)
        await watched(second, settle)
        await wait_long(pilot, lambda: "update 2 of" in head(one))
        await wait_long(second, lambda: "update 2 of" in head(other))
        await second.press("c")
        await wait_long(pilot, lambda: "· cancelled" in head(one))
        await wait_long(second, lambda: "· cancelled" in head(other))
        ended(job)
        jobs.remove(job)
        await wait_long(pilot, lambda: "This training was removed." in head(one))
        await pilot.press("r", "c", "enter")  # nothing can be done with it
        await wait_long(second, lambda: "This training was removed." in head(other))


async def test_what_a_model_says_is_drawn_as_text(app, train, home, settle):
    (home.root / "steps").write_text("1")
    running(train("a\x1b[2J [bold]\u202e", says="".join(HOSTILE) + "\n" * 20 + "\udcff"))
    async with app.run_test(size=(120, 60)) as pilot:
        await watched(pilot, settle)
        await wait_long(pilot, lambda: "[bold red]markup[/]" in said(app))
        assert_clean(app)
        assert "never shown" not in said(app)
        await pilot.press("t")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainingsDialog))
        assert_clean(app)


async def test_a_failure_shows_its_message_and_hint(app, told, settle):
    no_room = JobStatus("failed", started=NOON, ended=NOON + 9, message="The disk is full\x1b[2J.", hint="Free some.")
    told("poems", no_room, Progress("read", 3, 4, "rows made tokens"))
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f10")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        await pilot.press("t")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainingsDialog))
        await pilot.press("enter")
        await wait_long(pilot, lambda: "The disk is full␛[2J. Free some." in head(app))
        assert "r begins it again." in head(app)
        assert "The loss is drawn here" in plot(app)
        assert_clean(app)


async def test_many_updates_are_drawn_soon_and_the_axis_changes(app, told, settle):
    steps = [Step(step, 20_000, metrics(step)) for step in range(1, 20_001)]
    job = told("poems", JobStatus("running", started=NOON), *steps)
    held = take(job.lock_path)  # this process plays the job's
    async with app.run_test() as pilot:
        await watched(pilot, settle)
        await wait_long(pilot, lambda: "update 20,000 of 20,000" in head(app))
        before = plot(app)
        assert "15k" in before
        await pilot.press("l")
        await wait_long(pilot, lambda: plot(app) != before)
        assert "logarithmic" in plot(app)
    held.close()


def test_a_curve_keeps_its_extremes_and_its_size():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, 100.0 if step == 31_415 else -100.0 if step == 92_653 else step % 7)
    assert len(curve.points) <= 8192
    assert (31_415, 100.0) in curve.points
    assert (92_653, -100.0) in curve.points
    assert curve.points == sorted(curve.points)
    curve.add(50_000, 1.0)  # a run that was broken off goes on from there
    assert curve.points[-1] == (50_000, 1.0)
    assert curve.points[-2][0] < 50_000


def test_updates_done_twice_are_shown_once(told):
    events = [Step(step, 10, metrics(step)) for step in (1, 2, 3, 4)]
    again = [State("queued"), Step(3, 10, {"loss": 9.0})]
    job = told("poems", JobStatus("dead"), *events, *again)
    run = RunReader(job).read()
    assert run.train == ((1, 2.0), (2, 1.5), (3, 9.0))
    assert run.saved == 0
    assert run.predicted == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"fitted": {}}', '{"fitted": {"predicted": "x"}}'])
def test_a_plan_that_cannot_be_read_predicts_nothing(told, text):
    job = told("poems", JobStatus("done"))
    (job.out / "plan.json").write_text(text)
    (job.directory / "checkpoints" / "step-x").mkdir(parents=True)
    assert RunReader(job).read().predicted == 0


def test_a_damaged_recipe_leaves_the_title(jobs):
    job = jobs.create(JobSpec("finetune", "rows", "tests.fakes.train_entries:train", {"recipe": ["x"]}))
    assert training_name(job) == "rows"
    assert recipe_of(job) == {}


def test_killed_for_good(train, jobs, home):
    """The fakes of this file do what the tests above take for granted."""
    (home.root / "steps").write_text("1")
    job = running(train())
    os.killpg(read_status(job.directory).pid, signal.SIGKILL)
    assert ended(job).state == "dead"


@pytest.fixture
def full(make_app, model, told):
    app = make_app()
    losses = [2.4 - 1.2 * (1 - 0.985**step) + 0.15 * ((step * 37) % 11 - 5) / 11 for step in range(1, 241)]
    events = [Message("info", "Rows: 1,204 messages."), Evaluation(0, {"loss": 2.51})]
    for step, loss in enumerate(losses, 1):
        events.append(Step(step, 400, {**metrics(step), "loss": loss}))
        if step % 40 == 0:
            events.append(Evaluation(step, {"loss": 2.5 - 1.1 * (1 - 0.985**step)}))
            events.append(Checkpoint(step, f"checkpoints/step-{step:06d}"))
    events.append(Sample(240, "Who are you?", "I am Zorba, an assistant that Ada has made.\nHow can I help?"))
    job = told("my_chats", JobStatus("running", started=NOON - 2400), *events)
    (job.directory / "checkpoints" / "step-000240").mkdir(parents=True)
    (job.out / "plan.json").write_text('{"fitted": {"predicted": 3100000000}}')
    held = take(job.lock_path)
    yield app
    held.close()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("theme", ["localllm-dark", "localllm-light"])
def test_snapshot(snap_compare, full, size, theme):
    full.theme = theme

    async def look(pilot):
        await wait_long(pilot, lambda: full.session.model)
        await pilot.press("f10")
        await wait_long(pilot, lambda: isinstance(full.screen, TrainRunScreen))
        await wait_long(pilot, lambda: "update 240 of 400" in head(full) and "I am Zorba" in said(full))
        full.clear_notifications()
        await pilot.pause()

    assert snap_compare(full, run_before=look, terminal_size=size)
