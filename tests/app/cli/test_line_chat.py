import os
import signal
import threading

import pytest

from app.cli.line_chat import ConnectOnDemand, LineChat, read_terminal_line, stats_line
from localllm.conversations import ConversationStore
from localllm.errors import EngineDiedError, ModelNotFoundError, ServerError
from localllm.models.manifest import Manifest
from serve.client import ChatOptions
from serve.registry import Served
from tests.fakes.client import Answer, FakeClient, done

SMALL = Served(Manifest("smollm2-135m", "q4_1", "pypi:x==1", "gguf", (), quantization="Q4_1"))
OTHER = Served(Manifest("other", "q8_0", "pypi:y==1", "gguf", (), quantization="Q8_0"))


class Store:
    def list(self) -> list[Served]:
        return [OTHER, SMALL]

    def resolve(self, name: str) -> Served:
        for served in self.list():
            if served.manifest.name == name:
                return served
        raise ModelNotFoundError(f"There is no model {name!r} here.", "Did you mean other?")


class Person:
    """Types the given lines, then Ctrl-D. An exception among them is raised instead."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)
        self.asked: list[tuple[str, str]] = []

    def __call__(self, prompt: str, prefill: str = "") -> str:
        self.asked.append((prompt, prefill))
        line = self.lines.pop(0) if self.lines else EOFError
        if not isinstance(line, str):
            raise line
        return line


@pytest.fixture
def conversations(home):
    store = ConversationStore(home.database)
    yield store
    store.close()


@pytest.fixture
def chat(conversations):
    """Runs a chat in which the given lines are typed; returns the person, for what they were asked."""

    def run(client, *lines, **options):
        async def connect():
            if isinstance(client, Exception):
                raise client
            return client

        person = Person(*lines)
        LineChat(
            Store(), conversations, ConnectOnDemand(connect), SMALL, ChatOptions(), read_line=person, **options
        ).run()
        return person

    return run


def texts(conversations, which=0):
    conversation = conversations.list()[which]
    return [(m.role, m.content, m.status) for m in conversations.active_path(conversation.id)]


def test_a_conversation_is_kept_and_every_turn_sends_what_was_said(chat, conversations, capsys):
    client = FakeClient()
    chat(client, "Hello?", "And now?", system_prompt="Be brief.")
    assert texts(conversations) == [
        ("user", "Hello?", "done"),
        ("assistant", "Hello there.", "done"),
        ("user", "And now?", "done"),
        ("assistant", "Hello there.", "done"),
    ]
    assert [m["role"] for m in client.requests[1][1]] == ["system", "user", "assistant", "user"]
    assert conversations.list()[0].title == "Hello?"
    assert client.closed
    out, err = capsys.readouterr()
    assert "smollm2-135m: Hello there.\n" in out
    assert err.count("41.0 tok/s, 100 prompt tokens, first token 0.10 s\n") == 2


def test_nothing_is_connected_or_kept_before_the_first_message(chat, conversations):
    client = FakeClient()
    chat(client, "/help", "", "/regenerate", "/edit", "/quit", "never read")
    assert conversations.list() == ()
    assert not client.requests
    assert not client.closed


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one\\", "two"], "one\ntwo"),
        (['"""', "one", "  two", '"""'], "one\n  two"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""one"""'], "one"),
        ([" /not a command"], "/not a command"),
        (["/etc/hosts holds what?"], "/etc/hosts holds what?"),
    ],
)
def test_messages_of_several_lines_and_slashes(chat, conversations, lines, message):
    chat(FakeClient(), *lines)
    assert texts(conversations)[0][1] == message


def test_ctrl_c_at_the_prompt_drops_the_line_and_goes_on(chat, conversations, capsys):
    chat(FakeClient(), "half\\", KeyboardInterrupt, "whole")
    assert [t[1] for t in texts(conversations) if t[0] == "user"] == ["whole"]
    assert "/quit ends" in capsys.readouterr().out


def test_edit_makes_a_branch_and_offers_the_old_text(chat, conversations):
    person = chat(FakeClient(), "first", "/edit", "second")
    assert ("Edited: ", "first") in person.asked
    path = conversations.active_path(conversations.list()[0].id)
    assert [m.content for m in conversations.siblings(path[0].id)] == ["first", "second"]
    assert path[0].content == "second"


def test_edit_of_several_lines_shows_them_instead(chat, capsys):
    person = chat(FakeClient(), "one\\", "two", "/edit", "")
    assert ("Edited: ", "") in person.asked
    out = capsys.readouterr().out
    assert "one\ntwo\n" in out
    assert "Nothing changed." in out


def test_edit_with_text_asks_nothing(chat, conversations):
    person = chat(FakeClient(), "first", "/edit second try")
    assert all(prompt == "You: " for prompt, _ in person.asked)
    assert texts(conversations)[0][1] == "second try"


def test_regenerate_adds_an_answer_beside_the_first(chat, conversations):
    chat(FakeClient([Answer(("one",)), Answer(("two",))]), "Hello?", "/regenerate")
    path = conversations.active_path(conversations.list()[0].id)
    assert [m.content for m in conversations.siblings(path[1].id)] == ["one", "two"]


def test_new_starts_another_conversation(chat, conversations):
    chat(FakeClient(), "one", "/new", "two")
    assert sorted(c.title for c in conversations.list()) == ["one", "two"]


def test_model_changes_for_the_rest_of_the_conversation(chat, conversations, capsys):
    client = FakeClient()
    chat(client, "one", "/model other", "two", "/model", "/model nothing")
    assert [request[0] for request in client.requests] == ["smollm2-135m:q4_1", "other:q8_0"]
    assert conversations.list()[0].model == "other:q8_0"
    out, err = capsys.readouterr()
    assert "*  other:q8_0" in out
    assert "Error: There is no model 'nothing' here. Did you mean other?" in err


def test_an_unknown_command_is_not_sent(chat, capsys):
    client = FakeClient()
    chat(client, "/hlep")
    assert not client.requests
    assert "/help lists them" in capsys.readouterr().out


def test_an_error_keeps_the_message_and_the_chat_goes_on(chat, conversations, capsys):
    client = FakeClient([Answer(("par",), EngineDiedError("The model died.", "Ask again.")), Answer(("fine",))])
    chat(client, "Hello?", "/regenerate")
    assert texts(conversations)[1] == ("assistant", "fine", "done")
    out, err = capsys.readouterr()
    assert "Error: The model died. Ask again." in err
    assert "Your message is kept" in out


def test_a_server_that_cannot_be_started_loses_no_message(chat, conversations, capsys):
    chat(ServerError("The server could not be started.", "See the log."), "Hello?")
    assert texts(conversations) == [("user", "Hello?", "done"), ("assistant", "", "error")]
    out, err = capsys.readouterr()
    assert "Error: The server could not be started. See the log." in err
    assert "smollm2-135m: " not in out


def test_control_characters_of_an_answer_do_not_reach_the_terminal(chat, conversations, capsys):
    chat(FakeClient([Answer(("\x1b]0;title\x07",))]), "Hello?")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert texts(conversations)[1][1] == "\x1b]0;title\x07"


def test_ctrl_c_stops_an_answer_and_keeps_what_came(chat, conversations, capsys):
    answer = Answer(("It pu", "never"), hold=1)

    class Interrupting(FakeClient):
        async def stream_chat(self, model, messages, options=None):
            async for event in super().stream_chat(model, messages, options):
                yield event
                # As a terminal does it: the signal comes from outside, while the answer is waited for.
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    client = Interrupting([answer, Answer(("Then this.",))])
    chat(client, "What is gravity?", "/quit")
    assert texts(conversations)[1] == ("assistant", "It pu", "cancelled")
    assert client.closed_streams == 1
    assert "(Stopped; what has come is kept.)" in capsys.readouterr().out


def test_stats_say_when_an_answer_was_cut():
    assert stats_line(done(reason="length")).endswith("cut at the longest length allowed")


def test_a_line_comes_from_standard_input(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: f"{prompt}typed")
    assert read_terminal_line("You: ", "old") == "You: typed"
