"""The Train screen: what is in the rows, what training takes. One test goes from rows to a chat by real jobs."""

import json

import pytest

from app.cli.main import main
from app.tui.screens.chat import ChatScreen
from app.tui.screens.train_dialogs import BadRowsDialog
from app.tui.screens.train_run import TrainRunScreen
from app.tui.widgets.check_view import CheckView
from localllm.adapters import AdapterStore
from localllm.jobs.record import JobSpec, read_status
from localllm.jobs.store import JobStore
from tests.app.tui.test_hostile import assert_clean
from tests.app.tui.test_models import wait_long
from tests.app.tui.test_train import BAD, drop, finds, form, found, line, opened, rows, title
from tests.app.tui.test_windows import options
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT, wait_until

__all__ = ["finds", "rows"]


async def test_findings_then_needs(app, rows, finds, jobs, settle):
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "Training needs about 2.5 GB of the 8.0 GB" in found(app))
        for words in (
            "Rows: 3 messages, 2 alpaca.",
            "say what another says",
            "4 examples to learn from, 1 held out.",
            "1,234 tokens, 617 of them learnt (50%).",
            "about 1:30 for 44 updates. Batches of 64.",
            " 33-64 ██████████████████████████████ 4",
            "rows.jsonl:1, what is learnt in green:",
            "I am Zorba.<|end|>",
        ):
            assert words in found(app), words
        text = app.screen.query_one("#check-text").content
        at = text.plain.index("I am Zorba")
        assert [str(span.style) for span in text.spans if span.start <= at < span.end] == ["bold $success"]
        await wait_long(pilot, lambda: not jobs.list())  # what was found is shown: the jobs are of no more use


async def test_without_colour_what_is_learnt_is_marked(make_app, model, rows, finds, settle, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "«I am Zorba.<|end|>»" in found(app))
        assert "between « and »" in found(app)


async def test_bad_rows_are_listed_and_left_out_when_told(app, rows, finds, settle):
    finds(findings={"n_bad": 7, "bad": BAD, "lines": ["Rows: 5 text.", "Bad rows, left out: 7."]})
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "7 bad rows: b shows them" in found(app))
        assert "✗ rows.jsonl:3: turn 3 has the role 'x'" in found(app)
        assert "rows.jsonl:4" not in found(app)
        assert form(app)["bad rows"] == "stop the training"
        await pilot.press("s")
        await wait_long(pilot, lambda: isinstance(app.screen, BadRowsDialog))
        assert len(options(app)) == 7
        assert "7 rows cannot be learnt from" in title(app)
        await pilot.press("end", "o")
        await wait_long(pilot, lambda: "Training needs about" in found(app))
        assert form(app)["bad rows"] == "left out"
        assert "7 bad rows, left out: b shows them." in found(app)
        await pilot.press("b", "o")
        await wait_long(pilot, lambda: form(app)["bad rows"] == "stop the training")
        assert "Training needs" not in found(app)
        assert "7 bad rows: b shows them, and can leave them out." in found(app)
        await line(pilot, 9)
        await wait_long(pilot, lambda: form(app)["bad rows"] == "left out")


async def test_a_single_bad_row(app, rows, finds, settle):
    finds(findings={"n_bad": 1, "bad": BAD[:1]})
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "1 bad row: b shows them" in found(app))
        await pilot.press("b")
        await wait_long(pilot, lambda: isinstance(app.screen, BadRowsDialog))
        assert "1 row cannot be learnt from" in title(app)


async def test_a_check_that_is_not_wanted_any_more_is_ended(app, rows, finds, jobs, settle):
    finds(waits=True)
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "rows read: 256" in found(app))
        (first,) = jobs.list()
        await line(pilot, 8, *"64", "enter")
        await wait_long(pilot, lambda: [job.id for job in jobs.list()] not in ([first.id], []) and not first.alive)
        await wait_long(pilot, lambda: len(jobs.list()) == 1)
        (second,) = jobs.list()
        assert second.spec.arguments["recipe"]["max_length"] == 64
        await pilot.press("escape")
        await wait_long(pilot, lambda: isinstance(app.screen, ChatScreen))
        assert second.alive, "leaving the screen ends nothing"
        (jobs.list()[0].home.root / "gate").touch()
        await pilot.press("f10")
        await wait_long(pilot, lambda: "4 examples to learn from" in found(app))


async def test_nothing_is_measured_over_a_training_that_runs(app, home, rows, finds, jobs, settle):
    finds(waits=True)
    given = {"recipe": {"model": "m", "name": "other"}}
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        below = app.screen
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "rows read: 256" in found(app))
        job = jobs.create(JobSpec("finetune", "x", "tests.fakes.train_entries:train", given))
        jobs.start(job)
        below.show_training(job)
        await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen))
        (home.root / "gate").touch()
        await wait_long(pilot, lambda: "m measures memory and time." in str(below.query_one("#check-text").render()))
        await pilot.press("escape")
        await wait_long(pilot, lambda: app.screen is below)
        assert not below.query_one(CheckView).is_measured
        await pilot.press("m")
        await wait_long(pilot, lambda: "waiting for job" in found(app))


@pytest.mark.parametrize("how", ["fails", "killed", "gone"])
async def test_a_check_that_fails_says_why(app, rows, finds, jobs, settle, how):
    finds(**{"fails": True} if how == "fails" else {"waits": True})
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        if how == "fails":
            await wait_long(pilot, lambda: "rows.jsonl is a ␛[31mPDF. Name another." in found(app))
        else:
            await wait_long(pilot, lambda: "rows read: 256" in found(app))
            (job,) = jobs.list()
            jobs.cancel(job, now=True)
            if how == "gone":
                wait_until(lambda: not job.alive)
                jobs.remove(job)
            await wait_long(pilot, lambda: "was cancelled" in found(app))
        assert_clean(app)
        finds()
        await pilot.press("c")
        await wait_long(pilot, lambda: "Training needs about" in found(app))


async def test_from_rows_to_a_chat_by_real_jobs(make_app, home, tmp_path, monkeypatch, capsys, jobs, settle):
    monkeypatch.setenv("LOCALLLM_GPU_LAYERS", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    capsys.readouterr()
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {i}. ", "completion": f"It is {i}."} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"what": 1}]))
    app = make_app()
    app.session.jobs = JobStore(home)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_long(pilot, lambda: app.session.model)
        await opened(pilot, settle)
        await drop(pilot, str(path))
        await wait_long(pilot, lambda: "1 bad row: b shows them" in found(app))
        assert "rows.jsonl:32: its fields (what) are of no known shape" in found(app)
        assert "1 rows say what another says" in found(app)
        await pilot.press("b", "o")
        await wait_long(pilot, lambda: "Training needs about" in found(app))
        await line(pilot, 6, *"6", "enter")
        await wait_long(pilot, lambda: form(app)["steps"] == "6")
        await pilot.press("s")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen))
        (job,) = (job for job in jobs.list() if job.spec.kind == "finetune")
        assert job.spec.arguments["recipe"]["skip_bad"] is True
        head = app.screen.query_one("#run-head")
        await wait_long(pilot, lambda: "Held-out loss" in str(head.render()))
        assert "update 6 of 6" in str(head.render())
        assert "expected" in str(head.render())
        assert read_status(job.directory).state == "done"
        assert AdapterStore(home).resolve("rows").rank == 16
        await pilot.press("enter")
        await wait_long(pilot, lambda: isinstance(app.screen, ChatScreen))
        await wait_long(pilot, lambda: app.session.model == "tiny:hf+rows")


def test_a_view_is_of_one_check_alone(jobs):
    view = CheckView(jobs, lambda: 0.0)
    assert view.clear() == []
    assert not view.is_measured
