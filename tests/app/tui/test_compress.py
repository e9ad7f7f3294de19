"""The Compress screen, over a real store, llama.cpp's plans and real jobs."""

import pytest

from app.cli.main import main
from app.tui.screens.chat import ChatScreen
from app.tui.screens.compress import CompressScreen
from app.tui.screens.dialogs import ChoiceDialog
from app.tui.widgets.job_bar import JobBar
from localllm.jobs.record import JobSpec
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from tests.app.tui.test_chat import notices, wait_for
from tests.app.tui.test_hostile import assert_clean
from tests.app.tui.test_models import wait_long
from tests.app.tui.test_windows import options
from tests.fakes.gguf_files import write_tiny_gguf


@pytest.fixture
def tiny(home, tmp_path, monkeypatch, capsys, jobs):
    """A tiny model as ``tiny:f16``; its rows of 32 are too short for most types."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert main(["pull", str(path), "--as", "tiny:f16"]) == 0
    capsys.readouterr()
    return ModelStore(home).resolve("tiny")


async def opened(pilot, settle):
    await wait_for(pilot, lambda: pilot.app.session.model)
    await pilot.press("f7")
    await wait_long(pilot, lambda: isinstance(pilot.app.screen, CompressScreen) and options(pilot.app))


def notes(app):
    return str(app.screen.query_one("#compress-notes").render())


async def test_no_model_yet(make_app, settle):
    app = make_app()
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f7")
        await wait_for(pilot, lambda: isinstance(app.screen, CompressScreen) and "No model is here" in notes(app))
        await pilot.press("s", "m", "f7")
        await settle(pilot)
        assert isinstance(app.screen, ChatScreen)


async def test_estimates_become_plans_and_a_job_makes_one(make_app, tiny, home, settle):
    app = make_app(memory_gb=1)
    app.session.jobs = JobStore(home)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot, settle)
        assert options(app)[0].startswith("q8_0 ")
        await wait_long(pilot, lambda: not any("~" in option for option in options(app)))
        await wait_for(pilot, lambda: "another type than asked" in notes(app))
        assert "q4_k_m fits this machine" in notes(app)
        assert_clean(app)
        await pilot.press("home")
        await wait_for(pilot, lambda: notes(app).startswith("q8_0 "))
        await pilot.press("enter")
        await wait_long(pilot, lambda: "tiny:q8_0 is here" in notices(app))
        assert ModelStore(home).resolve("tiny:q8_0").parent.name == "tiny:f16"
        await pilot.press("m")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await pilot.press("down", "enter")
        await wait_long(pilot, lambda: isinstance(app.screen, CompressScreen) and options(app)[0].startswith("q6_k"))


async def test_a_failing_job_is_told(make_app, tiny, jobs, settle):
    app = make_app(memory_gb=1)
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        job = jobs.create(JobSpec("quantize", "x \x1b[2J", "tests.fakes.job_entries:fail", heavy=False))
        jobs.start(job)
        app.screen.query_one(JobBar).follow(job)
        await wait_long(pilot, lambda: "No room for the model. Free some." in notices(app))
        assert "\x1b" not in notices(app)


async def test_the_end_of_each_of_two_jobs_is_told(make_app, tiny, jobs, home, settle):
    app = make_app(memory_gb=1)
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        for name in ("first", "second"):
            entry = "tests.fakes.job_entries:held"
            job = jobs.create(JobSpec("quantize", name, entry, {"name": name}, heavy=False, resumable=True))
            jobs.start(job)
            app.screen.query_one(JobBar).follow(job)
        bar = app.screen.query_one(JobBar)
        await wait_long(pilot, lambda: "quantize second" in str(bar.render()) and "50%" in str(bar.render()))
        (home.root / "first").touch()
        await wait_long(pilot, lambda: "first is here" in notices(app))
        assert "quantize second" in str(bar.render())
        (home.root / "second").touch()
        await wait_long(pilot, lambda: "second is here" in notices(app))
        await wait_for(pilot, lambda: not bar.display)
