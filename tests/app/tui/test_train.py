"""The Train screen: its choices, and the start. Jobs of a fake find what a test says."""

import pytest
import yaml
from textual import events
from textual.widgets import Input

from app.tui.screens.chat import ChatScreen
from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog
from app.tui.screens.help import HelpScreen
from app.tui.screens.train import TrainScreen
from app.tui.screens.train_dialogs import PathsDialog, SettingDialog
from app.tui.screens.train_run import TrainRunScreen
from app.tui.train_setup import Setup, chat_name
from localllm.errors import LocalLLMError
from localllm.jobs.record import JobSpec
from localllm.models.store import ModelStore
from tests.app.tui.test_chat import notices, write
from tests.app.tui.test_hostile import HOSTILE, assert_clean
from tests.app.tui.test_models import wait_long
from tests.app.tui.test_windows import options
from tests.fakes.models import put_model

BAD = [[f"rows.jsonl:{line}", f"turn {line} has the role 'x'"] for line in range(1, 8)]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    path = tmp_path / "my rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def finds(monkeypatch, jobs):
    """``finds(waits=True, findings={…})``: what the jobs of a check find from now on."""

    def found(**arguments):
        def check_spec(recipe):
            given = {"recipe": recipe.model_dump(mode="json"), **arguments}
            return JobSpec("check", "rows", "tests.fakes.train_entries:check", given, heavy=False, interrupt="cancel")

        def plan_spec(recipe):
            return JobSpec("check", "needs", "tests.fakes.train_entries:plan", {"recipe": recipe.model_dump()})

        monkeypatch.setattr("app.tui.screens.train.check_spec", check_spec)
        monkeypatch.setattr("app.tui.screens.train.plan_spec", plan_spec)

    found()
    return found


async def opened(pilot, settle):
    await settle(pilot)
    await pilot.press("f10")
    await wait_long(pilot, lambda: isinstance(pilot.app.screen, TrainScreen) and options(pilot.app))
    await settle(pilot)


async def line(pilot, number, *keys):
    """Press keys on a line of the form."""
    await pilot.press("home", *["down"] * number, "enter")
    await pilot.pause()
    if keys:
        await pilot.press(*keys)


async def drop(pilot, text):
    pilot.app.post_message(events.Paste(text))
    await pilot.pause()


def form(app):
    return {text[:15].strip(): text[15:].strip() for text in options(app)}


def found(app):
    return str(app.screen.query_one("#check-text").render())


def title(app):
    return " ".join(str(label.render()) for label in app.screen.query("Label"))


async def test_nothing_yet(make_app, jobs, settle):
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        assert form(app)["model"] == "none: Enter chooses one"
        assert "Choose a model and data" in found(app)
        await pilot.press("s", "w", "b", "m", "c", "t")
        await wait_long(pilot, lambda: "No training has run yet" in notices(app))
        await line(pilot, 0)
        await wait_long(pilot, lambda: "No model is here yet" in notices(app))
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape", "f10")
        await wait_long(pilot, lambda: isinstance(app.screen, ChatScreen))
        await pilot.press("ctrl+p")
        await write(pilot, "train a")
        await wait_long(pilot, lambda: app.screen.query("CommandList").first().option_count > 0)
        await pilot.press("enter")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        assert not jobs.list()


async def test_choices_show_what_they_come_to(app, home, rows, finds, settle):
    put_model(home, "other", "q8_0")
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        assert form(app)["model"] == "smollm2-135m:q4_1  Q4_1 GGUF, unpacked once first"
        assert form(app)["rank"] == "16  scale 2"
        assert form(app)["epochs"] == "by the data"
        await line(pilot, 0)
        await wait_long(pilot, lambda: isinstance(app.screen, ChoiceDialog) and len(options(app)) == 2)
        await pilot.press("home", "enter")
        await wait_long(pilot, lambda: form(app)["model"].startswith("other:q8_0"))
        await drop(pilot, f"'{rows}'")
        await wait_long(pilot, lambda: form(app)["name"] == "my-rows")
        await wait_long(pilot, lambda: form(app)["steps"] == "by the epochs  44")
        assert form(app)["epochs"] == "by the data  about 9.6 passes"
        await line(pilot, 3, "end", "enter")
        await wait_long(pilot, lambda: form(app)["rank"] == "16  not used")
        await line(pilot, 3, "enter")
        assert form(app)["rank"] == "16  not used", "the list begins at what is in use"
        await line(pilot, 4, *"999999", "enter")
        assert "rank is wrong" in str(app.screen.query_one("#dialog-about").render())
        await pilot.press(*["backspace"] * 6, *"8", "enter")
        await wait_long(pilot, lambda: form(app)["rank"].startswith("8"))
        await line(pilot, 6, *"30", "enter")
        await wait_long(pilot, lambda: form(app)["steps"] == "30")
        assert form(app)["epochs"].startswith("by the steps")
        await line(pilot, 5, *"2.5", "enter")
        await wait_long(pilot, lambda: form(app)["epochs"].startswith("2.5"))
        assert form(app)["steps"].startswith("by the epochs")
        await line(pilot, 7, *"2e-5", "enter")
        await wait_long(pilot, lambda: form(app)["learning rate"] == "2e-05")
        await line(pilot, 7, *["backspace"] * 5, "enter")
        await wait_long(pilot, lambda: form(app)["learning rate"] == "0.0002")
        await line(pilot, 2, *"a:b", "enter")
        assert isinstance(app.screen, SettingDialog), "that is no name of an adapter"
        await pilot.press(*["backspace"] * 3, *"Mine", "enter")
        await wait_long(pilot, lambda: form(app)["name"] == "mine")
        await pilot.press("escape", "f10")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        assert form(app)["name"] == "mine", "what was chosen is there again"


async def test_data_are_typed_completed_and_dropped(app, rows, finds, settle, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "train.csv").write_text("prompt,completion\na,b\n")
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await line(pilot, 1, *"nothing", "enter")
        await wait_long(
            pilot, lambda: "no file or directory nothing" in str(app.screen.query_one("#dialog-about").render())
        )
        assert isinstance(app.screen, PathsDialog)
        app.screen.query_one(Input).value = ""
        await write(pilot, "m")
        await pilot.press("tab")
        await wait_long(pilot, lambda: "more/  my rows.jsonl" in str(app.screen.query_one("#dialog-names").render()))
        await pilot.press("y", "tab")
        await wait_long(pilot, lambda: app.screen.query_one(Input).value == "my\\ rows.jsonl")
        await wait_long(pilot, lambda: "1 file, 35 B" in str(app.screen.query_one("#dialog-about").render()))
        await pilot.press("enter")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        await wait_long(pilot, lambda: form(app)["data"].endswith("my rows.jsonl  1 file, 35 B"))
        await drop(pilot, f"{tmp_path / 'more'!s}\nnone at\\ all")
        await wait_long(pilot, lambda: "no file or directory none" in notices(app))
        await drop(pilot, "x" * 300)
        await wait_long(pilot, lambda: "no file or directory xxx" in notices(app))
        await drop(pilot, f"file://{tmp_path}/more")
        await wait_long(pilot, lambda: form(app)["data"] == "my rows.jsonl, more  2 files, 57 B")
        await line(pilot, 1)
        dialog = app.screen
        assert dialog.query_one(Input).value == f"'{rows}' {tmp_path}/more"
        dialog.query_one(Input).value = ""
        await drop(pilot, f"{tmp_path}/more\n{rows}\n")
        await wait_long(pilot, lambda: dialog.query_one(Input).value == f"{tmp_path}/more '{rows}'")
        await pilot.press("escape")
        rows.unlink()
        await line(pilot, 0, "escape")
        await wait_long(pilot, lambda: "There is no file or directory" in form(app)["data"])


async def test_hostile_rows_paths_and_names_are_drawn_as_text(app, rows, finds, settle, tmp_path):
    nasty = "".join(HOSTILE)
    finds(
        findings={
            "lines": [nasty],
            "n_bad": 2,
            "bad": [[nasty, nasty], ["a \udcff", "b"]],
            "previews": [[nasty, [[nasty, True], [nasty, False]]]],
        }
    )
    odd = tmp_path / "a\x1b[2J [bold]\u202e.jsonl"
    odd.write_text("{}")
    async with app.run_test(size=(120, 60)) as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(odd))
        await wait_long(pilot, lambda: "There is no file or directory" in notices(app))
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "2 bad rows" in found(app))
        assert_clean(app)
        await pilot.press("b")
        await settle(pilot)
        assert_clean(app)
        await pilot.press("escape")
        app.screen.choose(Setup("smollm2-135m:q4_1", (str(odd),)))  # as a directory may hold it
        await settle(pilot)
        assert_clean(app)
        await line(pilot, 1)
        await settle(pilot)
        assert_clean(app)


async def test_what_is_set_is_written_as_a_recipe(app, rows, finds, settle, tmp_path):
    async with app.run_test() as pilot:
        await opened(pilot, settle)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: form(app)["name"] == "my-rows")
        await line(pilot, 4, *"8", "enter")
        await wait_long(pilot, lambda: form(app)["rank"].startswith("8"))
        await pilot.press("w")
        assert app.screen.query_one(Input).value == str(tmp_path / "my-rows.yaml")
        await pilot.press("enter")
        await wait_long(pilot, lambda: f"Saved as {tmp_path / 'my-rows.yaml'}" in notices(app))
        written = yaml.safe_load((tmp_path / "my-rows.yaml").read_text())
        assert (written["model"], written["rank"], written["data"]) == ("smollm2-135m:q4_1", 8, [str(rows)])
        (tmp_path / "my-rows.yaml").write_text("mine")
        await pilot.press("w", "enter")
        await wait_long(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("enter")
        assert (tmp_path / "my-rows.yaml").read_text() == "mine"
        await pilot.press("w")
        app.screen.query_one(Input).value = str(tmp_path / "none" / "x.yaml")
        await pilot.press("enter")
        await wait_long(pilot, lambda: "none/x.yaml cannot be written" in notices(app))
        for name in ("~nobody-of-that-name/x.yaml", "y" * 300):
            await pilot.press("w")
            app.screen.query_one(Input).value = name
            await pilot.press("enter")
            await wait_long(pilot, lambda end=name[-7:]: f"{end} cannot be written" in notices(app))


async def test_a_taken_name_is_said_before_the_start(app, rows, finds, jobs, settle):
    running = JobSpec("finetune", "x", "tests.fakes.train_entries:train", {"recipe": {"model": "m", "name": "my-rows"}})
    job = jobs.create(running)
    jobs.start(job)
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f10")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainRunScreen))
        await pilot.press("escape")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        await drop(pilot, str(rows))
        problem = app.screen.query_one("#train-problem")
        await wait_long(pilot, lambda: "my-rows is under way" in str(problem.render()))
        await pilot.press("s")
        await wait_long(pilot, lambda: "my-rows is under way" in notices(app))
        assert [job.spec.kind for job in jobs.list()].count("finetune") == 1
        await line(pilot, 2, *"other", "enter")
        await wait_long(pilot, lambda: not problem.display)


async def test_a_model_that_another_window_deleted(app, home, rows, finds, settle, model):
    from localllm.models.store import ModelStore

    async with app.run_test() as pilot:
        await opened(pilot, settle)
        ModelStore(home).remove(model)
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "There is no model" in str(app.screen.query_one("#train-problem").render()))
        await pilot.press("s")
        await wait_long(pilot, lambda: "There is no model" in notices(app))


def test_nothing_heavy_is_imported_by_the_screen():
    import subprocess
    import sys

    heavy = ("mlx", "transformers", "numpy", "llama_cpp", "gguf", "torch", "httpx2")
    code = f"import sys, app.tui.screens.train; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_path_in_wide_letters_keeps_its_end_and_its_note(app, rows, finds, settle):
    file = rows.with_name("日本語のとても長いファイル名の会話データ集です.jsonl")
    rows.rename(file)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, settle)
        await drop(pilot, f"'{file}'")
        await wait_long(pilot, lambda: "1 file" in form(app)["data"])
        assert form(app)["data"].startswith("…")
        assert form(app)["data"].endswith("会話データ集です.jsonl  1 file, 35 B")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("theme", ["localllm-dark", "localllm-light"])
def test_snapshot(snap_compare, make_app, model, rows, finds, size, theme, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: rows.parent)
    finds(findings={"n_bad": 2, "bad": BAD[:2], "lines": ["Rows: 3 messages, 2 alpaca."]})
    app = make_app(theme=theme)

    async def look(pilot):
        await wait_long(pilot, lambda: app.session.model)
        await pilot.press("f10")
        await wait_long(pilot, lambda: isinstance(app.screen, TrainScreen))
        await drop(pilot, str(rows))
        await wait_long(pilot, lambda: "2 bad rows" in found(app) and form(app)["name"] == "my-rows")
        await wait_long(pilot, lambda: form(app)["steps"].endswith("about 40"))
        app.clear_notifications()
        await pilot.pause()

    assert snap_compare(app, run_before=look, terminal_size=size)


def test_what_full_training_made_is_chatted_with_as_a_model(home):
    assert chat_name(ModelStore(home), "m-my-rows:mlx", "m:f16") == "m-my-rows:mlx"
    with pytest.raises(LocalLLMError, match="no adapter 'my-rows'"):
        chat_name(ModelStore(home), "my-rows", "m:f16")
