from contextlib import closing

import pytest
from textual.content import Content

from app.tui.screens.chat import ChatScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.jobs import JobsScreen
from localllm.jobs.event_log import EventWriter
from localllm.jobs.events import Evaluation, Message, Progress, Record, State, Step
from localllm.jobs.job import EVENTS
from localllm.jobs.locks import take
from localllm.jobs.record import JobSpec, JobStatus, write_status
from tests.app.tui.conftest import NOON
from tests.app.tui.test_chat import notices, wait_for
from tests.app.tui.test_windows import options
from tests.fakes.jobs import ended, running


@pytest.fixture
def told(jobs, monkeypatch):
    """``told(title, status, *events)``: a job that has told this; the events are ten seconds apart."""
    moments = iter(range(100))
    monkeypatch.setattr("localllm.jobs.store.time.time", lambda: NOON + next(moments))
    monkeypatch.setattr("localllm.jobs.store.secrets.choice", lambda letters: "k")

    def make(kind, title, status, *events, resumable=False):
        job = jobs.create(JobSpec(kind, title, "tests.fakes.job_entries:add", resumable=resumable))
        writer = EventWriter(job.directory / EVENTS)
        for index, event in enumerate((State("queued"), *events)):
            writer.write(Record(NOON + 10 * index, event))
        writer.close()
        write_status(job.directory, status)
        return job

    return make


async def opened(pilot, settle, n_rows):
    await settle(pilot)
    await pilot.press("f5")
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, JobsScreen) and len(options(pilot.app)) == n_rows)
    await settle(pilot)


async def test_nothing_yet(app, settle):
    async with app.run_test() as pilot:
        await opened(pilot, settle, 0)
        await wait_for(pilot, lambda: "No job has run yet" in str(app.screen.query_one("#job-head").render()))
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape", "escape")
        assert isinstance(app.screen, ChatScreen)


async def test_watch_cancel_resume_and_remove(app, start, home, settle):
    job = running(start("until_cancelled", title="two \x1b[2J", resumable=True))
    failed = start("fail", title="one")
    ended(failed)
    async with app.run_test() as pilot:
        await opened(pilot, settle, 2)
        assert options(app)[0].startswith("▸ test      two ␛[2J")
        head = app.screen.query_one("#job-head")
        await wait_for(pilot, lambda: "step " in str(head.render()) and "loss" in str(head.render()))
        await pilot.press("c")
        ended(job)
        await wait_for(pilot, lambda: "cancelled" in str(head.render()))
        assert job.status().state == "cancelled"
        await settle(pilot)
        (home.root / "finish").touch()
        await pilot.press("r")
        await wait_for(pilot, lambda: "· done" in str(head.render()))
        await pilot.press("c", "r")  # neither can be done with one that is done
        await pilot.press("d")
        await wait_for(pilot, lambda: len(options(app)) == 1)
        assert not job.directory.exists()
        await wait_for(pilot, lambda: "No room for the model." in str(app.screen.query_one("#job-lines").render()))
        assert notices(app).count("Resume") == 0


async def test_what_cannot_be_done_is_told(app, told, jobs, settle):
    job = told("quantize", "a", JobStatus("done", started=NOON, ended=NOON + 5))
    async with app.run_test() as pilot:
        await opened(pilot, settle, 1)
        jobs.remove(job)
        app.screen.action_remove()
        await wait_for(pilot, lambda: f"{job.id} runs, or is gone" in notices(app))


async def test_time_left_of_one_that_goes_on_after_a_pause(app, told, settle):
    job = told(
        "finetune",
        "rows",
        JobStatus("running", started=NOON),
        Step(1, 12, {"loss": 2.0}),
        *[Message("info", "a pause")] * 50,
        State("queued"),
        Step(2, 12, {"loss": 1.9}),
        Step(3, 12, {"loss": 1.8}),
        resumable=True,
    )
    with closing(take(job.lock_path)):  # this process plays the job's
        async with app.run_test() as pilot:
            await opened(pilot, settle, 1)
            await wait_for(pilot, lambda: "step 3 of 12" in str(app.screen.query_one("#job-head").render()))
            assert "1:30 left" in str(app.screen.query_one("#job-head").render())


async def test_a_title_that_is_cut_in_the_list_is_whole_below_it(app, told, settle):
    title = "smollm2-135m:q4_1 on /home/a person/chats of the last years/replies.jsonl"
    told("finetune", title, JobStatus("failed", started=NOON, ended=NOON + 5))
    told("pull", "short", JobStatus("done", started=NOON, ended=NOON + 5))
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, settle, 2)
        head = app.screen.query_one("#job-head")
        await wait_for(pilot, lambda: "· done" in str(head.render()))
        assert "short" not in str(head.render())
        await pilot.press("j")
        await wait_for(pilot, lambda: "· failed" in str(head.render()))
        assert title in str(head.render())


async def test_a_stage_that_is_done_is_not_the_whole_job(app, told, settle):
    job = told("finetune", "rows", JobStatus("running", started=NOON), Progress("rows", 12, 12, "made tokens"))
    with closing(take(job.lock_path)):  # this process plays the job's
        async with app.run_test() as pilot:
            await opened(pilot, settle, 1)
            head = app.screen.query_one("#job-head")
            await wait_for(pilot, lambda: "rows made tokens" in str(head.render()))
            assert "%" not in options(app)[0] + str(head.render())


async def test_a_title_in_wide_letters_moves_nothing(app, told, settle):
    told("finetune", "smollm2-135m:q4_1 on 会話データ集の長い名前のファイル集.jsonl", JobStatus("done", started=NOON))
    told("pull", "short", JobStatus("done", started=NOON))
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, settle, 2)
        places = {
            Content(option).cell_length - Content(option.partition(" done ")[2]).cell_length for option in options(app)
        }
        assert len(places) == 1


@pytest.fixture
def full(make_app, model, told):
    app = make_app()
    told("pull", "acme/tiny-GGUF", JobStatus("done", started=NOON, ended=NOON + 83, result={"name": "tiny"}))
    no_room = JobStatus("failed", started=NOON, ended=NOON + 9, message="The disk is full.", hint="Free some room.")
    told("quantize", "smollm2-135m:f16 to q4_k_m", no_room, Progress("quantize", 30, 210, "blk.3"))
    trained = told(
        "finetune",
        "smollm2-135m on my_chats.jsonl",
        JobStatus("running", started=NOON - 400),
        Message("info", "1,204 rows, 96 held out."),
        Step(40, 400, {"loss": 1.81, "tokens_per_second": 812, "memory": 3.1e9}),
        Evaluation(40, {"loss": 1.92}),
        Step(100, 400, {"loss": 1.234, "tokens_per_second": 815, "memory": 3.1e9}),
        resumable=True,
    )
    told("quantize", "qwen3-4b to q4_k_m", JobStatus("dead"))
    held = take(trained.lock_path)  # this process plays the job's
    yield app
    held.close()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
def test_snapshot(snap_compare, full, size):
    async def look(pilot):
        await pilot.press("f5")
        await wait_for(pilot, lambda: isinstance(full.screen, JobsScreen) and len(options(full)) == 4)
        await wait_for(pilot, lambda: "step 100" in str(full.screen.query_one("#job-head").render()))

    assert snap_compare(full, run_before=look, terminal_size=size)
