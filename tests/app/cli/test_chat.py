import io
import json

import pytest

from app.cli import chat
from app.cli.chat import Asked, answer_once, find_model, read_words, with_standard_input
from app.cli.main import Parser
from localllm.errors import EngineDiedError, ModelNotFoundError, SettingsError, UsageError
from localllm.models.manifest import Manifest
from serve.client import ChatOptions
from serve.registry import Served
from tests.fakes.client import Answer, FakeClient, done

STARTER = Served(Manifest("smollm2-135m", "q4_1", "pypi:x==1", "gguf", ()))


class Store:
    """What a chat asks of the registry."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def resolve(self, name: str) -> Served:
        if name not in self.names:
            raise ModelNotFoundError(f"There is no model {name!r} here.", "Fetch it with `localllm pull`.")
        return STARTER


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def known(word: str) -> bool:
    return word == "smollm2-135m"


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], Asked("", None)),
        (["smollm2-135m"], Asked("smollm2-135m", None)),
        (["What is gravity?"], Asked("", "What is gravity?")),
        (["Hello!"], Asked("", "Hello!")),
        (["重力とは"], Asked("", "重力とは")),
        (["any", "What is gravity?"], Asked("any", "What is gravity?")),
        (["any", "hello"], Asked("any", "hello")),
    ],
)
def test_model_and_prompt_are_told_apart(words, asked):
    assert read_words(words, known) == asked


def test_a_word_that_could_be_either_names_both_readings():
    with pytest.raises(UsageError) as raised:
        read_words(["gravity"], known)
    assert "localllm pull" in raised.value.hint
    assert "localllm chat starter 'gravity'" in raised.value.hint


@pytest.mark.parametrize("words", [[""], ["m", ""], ["m", " \n"]])
def test_an_empty_prompt_is_refused(words):
    with pytest.raises(UsageError, match="empty"):
        read_words(words, known)


def test_a_prompt_without_quotes_is_shown_with_them():
    with pytest.raises(UsageError) as raised:
        read_words(["What", "is", "gravity"], known)
    assert '"What is gravity"' in raised.value.hint


def test_standard_input_follows_the_prompt():
    assert with_standard_input("Sum up:", io.StringIO("text\n")) == "Sum up:\n\ntext"
    assert with_standard_input(None, io.StringIO("text\n")) == "text"
    assert with_standard_input("Hello", io.StringIO("")) == "Hello"
    assert with_standard_input(None, Terminal("never read")) is None


def test_neither_prompt_nor_standard_input_is_wrong_usage():
    with pytest.raises(UsageError, match="standard input is empty"):
        with_standard_input(None, io.StringIO(" \n"))


def test_standard_input_that_is_no_text_is_wrong_usage():
    with pytest.raises(UsageError, match="UTF-8"):
        with_standard_input(None, io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), encoding="utf-8"))


@pytest.mark.parametrize("words", [["caf\udce9"], ["starter", "caf\udce9"], ["starter", "Hi", "--stop", "\udcff"]])
def test_arguments_that_are_no_text_are_wrong_usage(ask, words):
    client = FakeClient()
    with pytest.raises(UsageError, match="UTF-8"):
        ask(client, *words)
    assert client.requests == []


def test_a_missing_starter_is_not_fetched_unasked(home, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ModelNotFoundError):
        find_model(Store(), home, "starter")


def test_a_person_may_decline_the_starter(home, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(ModelNotFoundError):
        find_model(Store(), home, "starter")


def test_a_person_may_have_the_starter_fetched(home, monkeypatch, capsys):
    store, pulled = Store(), []

    def run_job(home, spec, *, show, view):
        pulled.append(spec.arguments["source"])
        store.names = ("starter",)

    monkeypatch.setattr("app.cli.follow_job.run_job", run_job)
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    assert find_model(store, home, "starter") == STARTER
    assert pulled == ["starter"]


async def test_an_answer_is_streamed_piece_by_piece():
    pieces = []
    client = FakeClient([Answer(("It ", "pulls."))])
    assert await answer_once(client, "m", [], ChatOptions(), pieces.append) == done()
    assert pieces == ["It ", "pulls."]


@pytest.fixture
def ask(monkeypatch, home):
    """Runs `localllm chat` with the given words against a scripted client."""

    def run(client, *words, stdin=""):
        async def connect(home, settings, *, on_status):
            on_status("loading")
            return client

        parser = Parser(prog="localllm chat")
        chat.configure(parser)
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        monkeypatch.setattr("serve.registry.Registry", lambda models, adapters: Store("starter", "smollm2-135m"))
        monkeypatch.setattr("serve.discovery.connect", connect)
        return chat.run(parser.parse_args(words), home)

    return run


def test_one_answer_goes_to_standard_output_and_the_rest_does_not(ask, capsys):
    client = FakeClient([Answer(("It \x1b[31mpulls", "."))])
    assert ask(client, "What is gravity?", "--stats", "--temperature", "0", "--seed", "0", "--top-k", "5") == 0
    out, err = capsys.readouterr()
    assert out == "It ␛[31mpulls.\n"
    assert err == "loading\n41.0 tok/s, 100 prompt tokens, first token 0.10 s\n"
    ((model, messages, options),) = client.requests
    assert model == "smollm2-135m:q4_1"
    assert messages == [{"role": "user", "content": "What is gravity?"}]
    assert (options.temperature, options.seed, options.top_k, options.max_tokens) == (0, 0, 5, None)
    assert client.closed


def test_no_speed_without_a_terminal(ask, capsys):
    ask(FakeClient(), "Hello!")
    assert "tok/s" not in capsys.readouterr().err


def test_json_holds_text_and_usage_and_nothing_else_is_printed(ask, capsys):
    ask(FakeClient([Answer(("\x1b\u009b é",))]), "smollm2-135m", "hello", "--json")
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    record = json.loads(out)
    assert record["text"] == "\x1b\u009b é"
    assert record["usage"]["completion_tokens"] == 42
    assert record["finish_reason"] == "stop"


def test_json_without_a_prompt_is_wrong_usage(ask, monkeypatch):
    with pytest.raises(UsageError):
        ask(FakeClient(), "--json", stdin="")


def test_system_prompt_comes_first(ask):
    client = FakeClient()
    ask(client, "Hello!", "--system", "Be brief.")
    assert client.requests[0][1][0] == {"role": "system", "content": "Be brief."}


def test_prompt_from_standard_input(ask):
    client = FakeClient()
    ask(client, stdin="What is gravity?\n")
    assert client.requests[0][1] == [{"role": "user", "content": "What is gravity?"}]


def test_an_error_in_the_middle_keeps_what_came_and_ends_its_line(ask, capsys):
    client = FakeClient([Answer(("It pu",), EngineDiedError("The model's process ended.", "Ask again."))])
    with pytest.raises(EngineDiedError):
        ask(client, "Hello!")
    assert capsys.readouterr().out == "It pu\n"
    assert client.closed


def test_a_wrong_temperature_names_the_flag(ask):
    with pytest.raises(SettingsError, match="--temperature"):
        ask(FakeClient(), "Hello!", "--temperature", "-1")
