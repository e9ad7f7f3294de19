import pytest

from app.tui.screens.chat import ChatScreen
from app.tui.screens.dialogs import CodeDialog, LineDialog
from app.tui.screens.help import HelpScreen
from app.tui.screens.model_picker import ModelPicker, check_fit
from localllm.adapters import AdapterStore
from localllm.jobs.record import JobSpec
from localllm.settings import load_settings
from localllm.snapshots import ensure_directory, snapshot_directory
from tests.app.tui.test_chat import notices, shown, wait_for, write
from tests.fakes.client import Answer, FakeClient
from tests.fakes.gguf_files import write_tiny_gguf, write_tiny_lora
from tests.fakes.models import put_model

CODE = "Try\n\n```python\nprint('hi')\n```\n\nor\n\n```sh\necho hi\n\necho there\n```\n"


async def say(pilot, settle, text):
    await write(pilot, text)
    await pilot.press("enter")
    await settle(pilot)


def options(app):
    from textual.widgets import OptionList

    found = app.screen.query(OptionList).last()
    return [str(found.get_option_at_index(index).prompt) for index in range(found.option_count)]


def copied(app):
    return app.clipboard


# ── conversations ──


async def test_delete_and_undo(app, home, settle, conversations):
    snapshot = snapshot_directory(home, "ab" * 32) / "x.kv"
    ensure_directory(snapshot.parent)
    snapshot.touch()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, settle, "First")
        await pilot.press("ctrl+n")
        await say(pilot, settle, "Second")
        await pilot.press("ctrl+g", "d")
        await settle(pilot)
        assert [c.title for c in conversations.list()] == ["First"]
        assert shown(app)[0][1] == "First"
        assert "Deleted “Second”" in notices(app)
        assert not snapshot.exists(), "it may hold the deleted text"
        await pilot.press("f8")
        await settle(pilot)
        assert [c.title for c in conversations.list()] == ["Second", "First"]
        assert shown(app)[0][1] == "Second"


async def test_deleting_the_last_one_leaves_a_new_one(app, settle, conversations):
    async with app.run_test() as pilot:
        await say(pilot, settle, "Only")
        await pilot.press("ctrl+g", "d")
        await settle(pilot)
        assert shown(app) == []
        assert app.screen.query_one("#welcome").display
        await pilot.press("escape")
        await say(pilot, settle, "New")
        assert [c.title for c in conversations.list()] == ["New"]


async def test_deleting_while_an_answer_is_written_stops_it(app, client, settle, conversations):
    client.answers = [Answer(["Half", "rest"], hold=1)]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("1 tokens"))
        await pilot.press("ctrl+g", "d")
        await settle(pilot)
        assert client.closed_streams == 1
        await pilot.press("f8")
        await settle(pilot)
        assert shown(app)[1] == ("assistant", "Half", "cancelled")


async def test_rename(app, settle, conversations):
    async with app.run_test() as pilot:
        await say(pilot, settle, "Hi")
        await pilot.press("f4")
        assert isinstance(app.screen, LineDialog)
        await pilot.press("end", *" you", "enter")
        await settle(pilot)
        assert conversations.list()[0].title == "Hi you"
        assert str(app.screen.query_one("#title").render()) == "Hi you"
        await pilot.press("f4", "x", "escape")
        await settle(pilot)
        assert conversations.list()[0].title == "Hi you"


async def test_search_finds_answers_and_opens_them(app, client, settle):
    client.answers = [Answer(["the moon"]), Answer(["the sun"])]
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, settle, "First")
        await pilot.press("ctrl+n")
        await say(pilot, settle, "Second")
        await pilot.press("f3")
        await write(pilot, "MOON")
        await settle(pilot)
        assert options(app) == ["  First\n  the moon"]
        await pilot.press("enter", "down", "enter")
        await settle(pilot)
        assert shown(app)[1][1] == "the moon"
        assert app.screen.focused is app.screen.prompt
        assert len(options(app)) == 3  # everything again: a heading and two conversations
        await pilot.press("f3", *"zzz")
        await settle(pilot)
        assert options(app) == ["Nothing found"]


async def test_the_list_hides_and_shows(app, settle):
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert not app.screen.query_one("#sidebar").display
        await pilot.press("ctrl+b")
        await settle(pilot)
        assert app.screen.query_one("#sidebar").display
        await pilot.press("ctrl+b")
        await settle(pilot)
        assert not app.screen.query_one("#sidebar").display
        await pilot.resize_terminal(120, 40)
        await settle(pilot)
        assert app.screen.query_one("#sidebar").display
        await pilot.press("f2")
        await settle(pilot)
        assert not app.screen.query_one("#sidebar").display


@pytest.mark.parametrize("size", [(40, 12), (20, 6), (1, 1)])
async def test_a_window_may_become_very_small(app, settle, size):
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.resize_terminal(*size)  # for a moment the list leaves the prompt no column
        await settle(pilot)
        for key in ("ctrl+p", "f1", "f5", "f6", "f7", "f10", "ctrl+b"):
            await pilot.press(key)
            await settle(pilot)
            await pilot.press("escape")
            await settle(pilot)
        assert app.screen is app.screen_stack[0]
        await write(pilot, "Hi")
        await pilot.resize_terminal(120, 40)
        await settle(pilot)
        assert app.screen.prompt.text == "Hi"


async def test_drafts_wait_with_their_conversation(app, settle):
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, settle, "First")
        await write(pilot, "draft")
        await pilot.press("ctrl+n")
        assert app.screen.prompt.text == ""
        await pilot.press("ctrl+g", "enter")
        await settle(pilot)
        assert app.screen.prompt.text == "draft"


async def test_export(app, client, settle, home):
    client.answers = [Answer(["**Hello** \x1b[31mred"])]
    async with app.run_test() as pilot:
        await say(pilot, settle, "Say: hello/../!")
        await pilot.press("ctrl+p")
        await write(pilot, "export")
        await settle(pilot)
        await wait_for(pilot, lambda: app.screen.query("CommandList").first().option_count > 0)
        await pilot.press("enter")
        await wait_for(pilot, lambda: "Saved as" in notices(app))
    (file,) = home.exports.iterdir()
    assert file.name == "say-hello-1.md"
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text(encoding="utf-8")
    assert "## You\n\nSay: hello/../!\n\n## smollm2-135m:q4_1\n\n**Hello** ␛[31mred" in text


# ── copying ──


async def test_copy_a_message_and_a_block_of_code(app, client, settle):
    client.answers = [Answer([CODE])]
    async with app.run_test() as pilot:
        await say(pilot, settle, "Hi")
        await pilot.press("alt+up", "c")
        await settle(pilot)
        assert copied(app) == CODE
        await pilot.press("b")
        assert isinstance(app.screen, CodeDialog)
        assert options(app) == ["python           1 line  print('hi')", "sh              3 lines  echo hi"]
        await pilot.press("down", "enter")
        await settle(pilot)
        assert copied(app) == "echo hi\n\necho there"


async def test_one_block_is_copied_at_once(app, client, settle):
    client.answers = [Answer(["```\nx\x1b]52;c;aGk=\x07 = 1\n```"])]
    async with app.run_test() as pilot:
        await say(pilot, settle, "Hi")
        await pilot.press("alt+up", "b")
        await settle(pilot)
        assert copied(app) == "x␛]52;c;aGk=␇ = 1"


# ── help, palette, theme ──


async def test_help_lists_the_keys(app, settle):
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)
        text = "\n".join(str(static.render()) for static in app.screen.query("Static"))
        for key, what in (("Ctrl+N", "new conversation"), ("Esc", "Stop the answer"), ("Alt+↑", "Go to the messages")):
            assert key in text
            assert what in text
        await pilot.press("down", "pagedown", "escape")
        assert isinstance(app.screen, ChatScreen)


async def test_a_question_mark_is_text_while_writing_and_help_elsewhere(app, settle):
    async with app.run_test() as pilot:
        await say(pilot, settle, "Why?")
        assert shown(app)[0][1] == "Why?"
        await pilot.press("alt+up", "question_mark")
        assert isinstance(app.screen, HelpScreen)


async def test_every_binding_has_an_id_of_its_own(app):
    from textual.binding import Binding

    from app.tui.app import LocalLLMApp
    from app.tui.screens.compress import CompressScreen
    from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog
    from app.tui.screens.jobs import JobsScreen
    from app.tui.screens.models import ModelsScreen
    from app.tui.widgets.prompt import Prompt
    from app.tui.widgets.sidebar import ConversationList
    from app.tui.widgets.transcript import Transcript

    full = (JobsScreen, ModelsScreen, CompressScreen)
    screens = (*full, ChatScreen, HelpScreen, ModelPicker, ConfirmDialog, ChoiceDialog)
    owners = (LocalLLMApp, *screens, Prompt, Transcript, ConversationList)
    bindings = [binding for owner in owners for binding in owner.__dict__["BINDINGS"]]
    ids = [binding.id for binding in bindings if isinstance(binding, Binding)]
    assert all(ids)
    assert len(ids) == len(set(ids)) == len(bindings)


async def test_a_model_can_be_picked_with_an_adapter(app, model, settle, home, tmp_path):
    base = write_tiny_gguf(tmp_path / "base.gguf")
    AdapterStore(home).install(write_tiny_lora(tmp_path / "pirate.gguf", base), base="smollm2-135m")
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert "smollm2-135m:q4_1+pirate" in options(app)[1]
        await pilot.press("down", "enter")
        await settle(pilot)
        assert app.session.model == "smollm2-135m:q4_1+pirate"
        assert app.session.find_model(app.session.model) == "smollm2-135m:q4_1+pirate"


async def test_a_keymap_moves_a_key(app, settle):
    async with app.run_test() as pilot:
        await settle(pilot)
        app.set_keymap({"chat.models": "f5"})
        await pilot.press("f5")
        await settle(pilot)
        assert isinstance(app.screen, ModelPicker)


async def test_the_palette_has_every_action(app, settle):
    async with app.run_test() as pilot:
        await say(pilot, settle, "Hi")
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert titles >= {
            "New conversation",
            "Pick a model",
            "Search conversations",
            "Rename conversation",
            "Delete conversation",
            "Export conversation",
            "Regenerate answer",
            "Edit question",
            "Copy message",
            "Copy code",
            "Light or dark",
            "Theme",
            "Jobs",
            "Models",
            "Compress",
            "Keys",
            "Quit",
        }


async def test_the_theme_is_kept(make_app, model, settle, home):
    app = make_app()
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f9")
        await settle(pilot)
        assert app.theme == "localllm-light"
    assert load_settings(home.settings_file).theme == "localllm-light"


async def test_an_unknown_theme_is_ours(make_app, model, settle):
    app = make_app(theme="gone")
    async with app.run_test():
        assert app.theme == "localllm-dark"


# ── models ──


async def test_pick_another_model(make_app, model, home, settle, conversations):
    put_model(home, "other", "q8_0", 3_200_000_000)
    client = FakeClient()
    app = make_app(client)
    async with app.run_test() as pilot:
        await say(pilot, settle, "Hi")
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert "other:q8_0" in options(app)[0]
        assert "3.2 GB" in options(app)[0]
        assert options(app)[1].startswith("▸ smollm2-135m:q4_1")
        await pilot.press("k", "enter")
        await settle(pilot)
        assert app.screen.status.model == "other:q8_0"
        assert client.loaded == ["smollm2-135m:q4_1", "other:q8_0"]
        await say(pilot, settle, "And?")
        assert client.requests[-1][0] == "other:q8_0"
    assert conversations.list()[0].model == "other:q8_0"
    again = make_app(client)
    async with again.run_test() as pilot:
        await settle(pilot)
        assert again.screen.status.model == "other:q8_0"


@pytest.mark.model
def test_the_fit_of_a_real_model(starter_home):
    from app.tui.screens.model_picker import Row
    from localllm.models.store import ModelStore

    store = ModelStore(starter_home)
    manifest = store.resolve("starter")
    row = check_fit(store, manifest, Row(str(manifest.model_name), manifest.size, "Q4_1"), 0, 0)
    assert row.verdict == "fits"
    assert "8192 tok" in row.detail
    assert check_fit(store, manifest, row, 0, 0.05).verdict == "too big"


@pytest.fixture
def pull_entry(monkeypatch):
    """Sets what a download of the model picker runs."""

    def use(entry):
        def spec(source):
            return JobSpec("pull", source, f"tests.fakes.job_entries:{entry}", {"source": source}, heavy=False)

        monkeypatch.setattr(ModelPicker.__init__, "__kwdefaults__", {"n_ctx": 0, "memory_gb": 0, "spec": spec})

    return use


async def test_without_a_model_the_starter_is_offered(make_app, home, jobs, settle, pull_entry):
    pull_entry("fetch")
    client = FakeClient()
    app = make_app(client)
    async with app.run_test() as pilot:
        await settle(pilot)
        assert "No model is here yet" in notices(app)
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, ModelPicker)
        assert options(app) == ["+ Fetch smollm2-135m:q4_1  98 MB, to start with"]
        await pilot.press("enter")
        await wait_for(pilot, lambda: str(app.screen.query_one("#pull-stage").render()) == "Fetching model.gguf")
        (home.root / "gate").touch()
        await settle(pilot)
        assert [job.spec.arguments["source"] for job in jobs.list()] == ["starter"]
        assert isinstance(app.screen, ChatScreen)
        assert app.screen.prompt.text == "Hi"
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app)[1][2] == "done"


async def test_a_download_outlives_the_app_and_is_shown_again(make_app, home, jobs, settle, pull_entry, capsys):
    pull_entry("fetch")
    app = make_app()
    async with app.run_test() as pilot:
        await pilot.press("ctrl+o")
        await wait_for(pilot, lambda: isinstance(app.screen, ModelPicker) and len(options(app)) == 1)
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.query_one("#pull-bar").display and jobs.list())
        await pilot.press("ctrl+q")
    (job,) = jobs.list()
    assert "1 job goes on: pull starter. `localllm jobs` shows it." in capsys.readouterr().err
    assert job.alive
    again = make_app()
    async with again.run_test() as pilot:
        await wait_for(pilot, lambda: "1 job goes on: pull starter. F5 shows it." in notices(again))
        await pilot.press("ctrl+o")
        await wait_for(pilot, lambda: str(again.screen.query_one("#pull-stage").render()) == "Fetching model.gguf")
        (home.root / "gate").touch()
        await settle(pilot)
        assert isinstance(again.screen, ChatScreen)
        assert again.screen.status.model == "smollm2-135m:q4_1"
    assert len(jobs.list()) == 1


async def test_a_download_that_fails_is_reported(make_app, settle, pull_entry):
    pull_entry("fail")
    app = make_app()
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("ctrl+o")
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        assert "No room for the model. Free some." in notices(app)
        assert not app.screen.query_one("#pull-bar").display
