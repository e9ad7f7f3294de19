import asyncio

from app.tui.widgets.prompt import Prompt
from app.tui.widgets.transcript import PAGE, Transcript
from localllm.errors import ContextLengthError, ServerError
from tests.fakes.client import Answer, FakeClient, done


def shown(app):
    """Role, text and status of the branch on the screen, as the store has it too."""
    screen = app.screen_stack[0]
    path = [(message.role, message.content, message.status) for message in screen.transcript.path]
    if screen.conversation is not None:
        stored = screen.store.active_path(screen.conversation.id)
        assert [message.id for message in stored] == [message.id for message in screen.transcript.path]
    return path


def notices(app):
    return " ".join(notice.message for notice in app._notifications)


async def write(pilot, text):
    await pilot.press(*text)


async def wait_for(pilot, condition):
    for _ in range(200):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not happen")


async def test_send_and_stream(app, client, conversations, settle):
    gate = asyncio.Event()
    client.answers = [Answer(["Hello", " **there**."], hold=1, gate=gate)]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.session.live and app.screen.status.doing.startswith("1 tokens"))
        assert shown(app)[0] == ("user", "Hi", "done")
        assert app.screen.prompt.text == ""
        assert "Esc stops" in app.screen.status.doing
        gate.set()
        await settle(pilot)
        assert shown(app) == [("user", "Hi", "done"), ("assistant", "Hello **there**.", "done")]
        assert str(app.screen.status.render()).startswith("smollm2-135m:q4_1 · 41 tok/s · 142/8192 ")
    assert [conversation.title for conversation in conversations.list()] == ["Hi"]
    assert client.closed


async def test_pieces_of_several_tokens_are_counted_as_such(app, client, settle):
    gate = asyncio.Event()
    client.answers = [Answer([" it is. Aw, it is.", "\n\n"], hold=1, gate=gate)]  # guesses that were right come at once
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("8 tokens"))
        gate.set()
        await settle(pilot)


async def test_a_second_message_carries_the_first(app, client, settle):
    async with app.run_test() as pilot:
        for text in ("One", "Two"):
            await write(pilot, text)
            await pilot.press("enter")
            await settle(pilot)
    assert [message["content"] for message in client.requests[1][1]] == ["One", "Hello there.", "Two"]


async def test_options_come_from_the_settings(make_app, model, settle):
    client = FakeClient()
    app = make_app(client, temperature=0.0, max_tokens=7, system_prompt="Be brief.")
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
    name, messages, options = client.requests[0]
    assert name == "smollm2-135m:q4_1"
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert (options.temperature, options.max_tokens) == (0.0, 7)


async def test_escape_keeps_the_text(app, client, settle):
    client.answers = [Answer(["Half", "never"], hold=1)]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("1 tokens"))
        await pilot.press("escape")
        await settle(pilot)
        assert shown(app)[1] == ("assistant", "Half", "cancelled")
        view = app.screen.transcript.view(app.screen.transcript.path[1].id)
        assert "Stopped" in str(view.query_one(".note").render())
        assert client.closed_streams == 1


async def test_quitting_keeps_the_text_and_a_restart_shows_it(make_app, model, conversations, settle):
    client = FakeClient([Answer(["Half", "never"], hold=1)])
    app = make_app(client)
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("1 tokens"))
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert client.closed
    again = make_app()
    async with again.run_test() as pilot:
        await settle(pilot)
        assert shown(again) == [("user", "Hi", "done"), ("assistant", "Half", "cancelled")]


async def test_regenerate_and_switch_branches(app, client, settle, conversations):
    client.answers = [Answer(["one"]), Answer(["two"]), Answer(["three"])]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("ctrl+r")
        await settle(pilot)
        await pilot.press("alt+up", "r")
        await settle(pilot)
        assert shown(app)[1][1] == "three"
        view = app.screen.transcript.view(app.screen.transcript.path[1].id)
        assert str(view.query_one(".branch").render()) == "‹ 3/3 ›"  # noqa: RUF001  the marks on the screen
        await pilot.press("left")
        await settle(pilot)
        assert shown(app)[1][1] == "two"
        await pilot.press("h", "h")
        await settle(pilot)
        assert shown(app)[1][1] == "one"
        await pilot.press("right")
        await settle(pilot)
        assert shown(app)[1][1] == "two"


async def test_edit_makes_a_branch_and_keeps_the_draft(app, client, settle):
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        await write(pilot, "my draft")
        await pilot.press("alt+up", "k", "e")
        assert app.screen.prompt.text == "Hi"
        await write(pilot, " again")
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app)[0][1] == "Hi again"
        assert app.screen.prompt.text == "my draft"
        assert client.requests[1][1] == [{"role": "user", "content": "Hi again"}]
        await pilot.press("alt+up", "k", "left")
        await settle(pilot)
        assert [text for _, text, _ in shown(app)] == ["Hi", "Hello there."]


async def test_escape_leaves_an_edit(app, settle):
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        await write(pilot, "draft")
        await pilot.press("alt+up", "e", "escape")
        assert app.screen.prompt.text == "draft"
        assert app.screen.editing is None


async def test_a_server_that_dies_keeps_the_prompt_and_is_found_again(make_app, model, settle):
    dying = FakeClient([Answer(["Half"], error=ServerError("The server is gone.", "Try again."))])
    fresh = FakeClient([Answer(["All of it"])])
    app = make_app(dying, fresh)
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app) == [("user", "Hi", "done"), ("assistant", "Half", "error")]
        view = app.screen.transcript.view(app.screen.transcript.path[1].id)
        assert "The server is gone. Try again." in str(view.query_one(".note").render())
        assert dying.closed
        await pilot.press("ctrl+r")
        await settle(pilot)
        assert shown(app) == [("user", "Hi", "done"), ("assistant", "All of it", "done")]


async def test_no_server_at_all_keeps_the_prompt(home, make_app, model, settle, conversations):
    app = make_app()

    async def refuse(*args, **kwargs):
        raise ServerError("No server could be started.", "See the log.")

    app.session._connect = refuse
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app) == [("user", "Hi", "done"), ("assistant", "", "error")]
        assert "No server could be started. See the log." in notices(app)


async def test_a_full_context_says_both_numbers(app, client, settle):
    client.answers = [Answer([], error=ContextLengthError(9000, 8192))]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        view = app.screen.transcript.view(app.screen.transcript.path[1].id)
        note = str(view.query_one(".note").render())
        assert "9000" in note
        assert "8192" in note


async def test_a_model_that_still_loads(make_app, model, settle):
    gate = asyncio.Event()
    client = FakeClient([Answer(["Done."], hold=0, gate=gate)], load_gate=gate)
    app = make_app(client)
    async with app.run_test() as pilot:
        await wait_for(pilot, lambda: app.screen.status.doing == "loading smollm2-135m:q4_1…")
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: len(shown(app)) == 2)
        view = app.screen.transcript.view(app.screen.transcript.path[1].id)
        assert str(view.query_one(".note").render()) == "loading smollm2-135m:q4_1…"
        await write(pilot, "more")
        assert app.screen.prompt.text == "more"
        gate.set()
        await settle(pilot)
        assert shown(app)[1][1] == "Done."
        assert client.loaded == ["smollm2-135m:q4_1"]


async def test_a_model_that_does_not_load_is_reported(make_app, model, settle):
    app = make_app(FakeClient(load_error=ServerError("It does not load.")))
    async with app.run_test() as pilot:
        await settle(pilot)
        assert "It does not load." in notices(app)


async def test_one_answer_at_a_time_in_a_conversation(app, client, settle):
    client.answers = [Answer(["Half", "rest"], hold=1)]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("1 tokens"))
        await write(pilot, "And?")
        await pilot.press("enter", "ctrl+r")
        await pilot.pause()
        assert app.screen.prompt.text == "And?"
        assert len(client.requests) == 1
        assert "Esc stops it" in notices(app)


async def test_an_answer_goes_on_while_another_conversation_is_shown(app, client, settle, conversations):
    gate = asyncio.Event()
    client.answers = [Answer(["one ", "two ", "three"], hold=1, gate=gate), Answer(["other"])]
    async with app.run_test(size=(120, 40)) as pilot:
        await write(pilot, "First")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("1 tokens"))
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert app.screen.status.doing == ""
        await write(pilot, "Second")
        await pilot.press("enter")
        await wait_for(pilot, lambda: len(app.screen.session.live) == 1 and len(shown(app)) == 2)
        assert shown(app)[1][1] == "other"
        first = conversations.list()[1].id
        await app.screen.show_conversation(first)
        assert shown(app)[1] == ("assistant", "one ", "streaming")
        gate.set()
        await settle(pilot)
        assert shown(app)[1] == ("assistant", "one two three", "done")


async def test_an_app_that_is_closed_from_outside_keeps_the_text(app, client, conversations):
    client.answers = [Answer(["Half", "never"], hold=1)]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: app.screen.status.doing.startswith("1 tokens"))
    last = conversations.active_path(conversations.list()[0].id)[-1]
    assert (last.content, last.status) == ("Half", "cancelled")


async def test_a_fast_stream_does_not_wait_for_the_drawing(app, client, settle, monkeypatch):
    from app.tui.widgets.message import MessageView

    drawn = []
    show_text = MessageView.show_text

    async def counted(self, text):
        drawn.append(len(text))
        await show_text(self, text)

    monkeypatch.setattr(MessageView, "show_text", counted)
    client.answers = [Answer(["word "] * 500)]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app)[1][1] == "word " * 500
        assert len(drawn) < 100


async def test_two_windows_on_one_home(make_app, model, settle):
    one, two = make_app(FakeClient([Answer(["a", "b"], hold=1)])), make_app()
    async with one.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await wait_for(pilot, lambda: one.screen.status.doing.startswith("1 tokens"))
        async with two.run_test() as other:
            await settle(other)
            assert shown(two)[1][2] == "streaming"


async def test_a_long_conversation_shows_its_end_first(make_app, model, conversations, settle):
    conversation = conversations.create("long", "smollm2-135m:q4_1")
    parent = None
    for index in range(100):
        role = "assistant" if index % 2 else "user"
        parent = conversations.append(conversation.id, parent, role, f"message {index}").id
    app = make_app()
    async with app.run_test() as pilot:
        await settle(pilot)
        transcript = app.screen.query_one(Transcript)
        assert len(transcript.query(".message")) == PAGE
        assert transcript.scroll_y == transcript.max_scroll_y > 0
        assert transcript.query_one("#earlier").display
        await pilot.press("alt+up", "home")
        assert transcript.selected.content == f"message {100 - PAGE}"
        await pilot.press("k")
        await settle(pilot)
        assert len(transcript.query(".message")) == 2 * PAGE
        assert transcript.selected.content == f"message {99 - PAGE}"
        await pilot.press("home", "home", "home", "home", "home", "home")
        await settle(pilot)
        assert len(transcript.query(".message")) == 100
        assert transcript.selected.content == "message 0"
        assert not transcript.query_one("#earlier").display
        await pilot.press("end")
        assert transcript.selected.content == "message 99"


async def test_the_prompt_takes_lines_history_and_paste(app, settle):
    from textual.events import Paste

    async with app.run_test() as pilot:
        for text in ("first", "second"):
            await write(pilot, text)
            await pilot.press("enter")
            await settle(pilot)
        await write(pilot, "a")
        await pilot.press("ctrl+j")
        await write(pilot, "b")
        await pilot.press("shift+enter")
        prompt = app.screen.query_one(Prompt)
        assert prompt.text == "a\nb\n"
        await pilot.press("up", "up", "up")
        assert prompt.text == "second"
        await pilot.press("up")
        assert prompt.text == "first"
        await pilot.press("up", "down", "down")
        assert prompt.text == "a\nb\n"
        prompt.text = ""
        app.post_message(Paste("one\r\ntwo\rthree\x1b[31m"))
        await pilot.pause()
        assert prompt.text == "one\ntwo\nthree␛[31m"
        prompt.text = " \n "
        await pilot.press("enter")
        await settle(pilot)
        assert len(shown(app)) == 4


async def test_an_answer_cut_at_the_limit_says_so(app, client, settle):
    client.answers = [Answer(["Half"], end=done(reason="length"))]
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        view = app.screen.transcript.view(app.screen.transcript.path[1].id)
        assert "length limit" in str(view.query_one(".note").render())
        assert view.query_one(".note").display
