"""Ollama's official client, unmodified, over a real socket."""

import json
import math
from datetime import UTC, datetime

import ollama
import pytest

from localllm import __version__
from localllm.errors import ContextLengthError, EngineDiedError
from localllm.gguf_header import GGUFHeader
from localllm.models.manifest import Manifest
from serve.engine.constraint_types import Constraint
from serve.engine.types import SamplingParams
from serve.http.errors import HTTPError
from serve.http.ollama_models import _model_info, _short
from serve.http.ollama_types import EmbedRequest, OllamaChatRequest, OllamaGenerateRequest, ShowRequest
from serve.http.wire_types import validate
from tests.fakes.engine import Script

HELLO = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": HELLO}
OPTIONS = {
    "temperature": 0,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "repeat_penalty": 1.2,
    "repeat_last_n": -1,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "seed": 7,
    "stop": ["x"],
    "num_predict": 9,
    "num_ctx": 256,
    "num_keep": 4,
    "mirostat": 0,
}


async def test_a_chat(serve):
    served = await serve()
    answer = await served.ollama().chat("tiny", [{"role": "system", "content": "Be brief."}, *HELLO], options=OPTIONS)
    assert answer.message.content == "Hello world."
    assert answer.message.role == "assistant"
    assert (answer.model, answer.done, answer.done_reason) == ("tiny:f16", True, "stop")
    assert (answer.prompt_eval_count, answer.prompt_eval_duration) == (5, 250_000_000)
    assert (answer.eval_count, answer.eval_duration) == (4, 500_000_000)
    assert answer.total_duration >= answer.load_duration > 0
    assert answer.created_at.endswith("Z")
    request = served.engine.requests[0]
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert request.sampling == SamplingParams(0, 3, 0.5, 0.1, 1.2, 0.5, -0.5, -1, 7)
    assert (request.max_tokens, request.stop) == (9, ("x",))
    assert request.client


async def test_a_streamed_chat(serve):
    served = await serve(Script(texts=("Grüße ", "🙂", "\u2028“\0”\n")))
    parts = [part async for part in await served.ollama().chat("tiny", HELLO, stream=True)]
    assert "".join(part.message.content for part in parts) == "Grüße 🙂\u2028“\0”\n"
    assert [part.done for part in parts] == [False] * 3 + [True]
    assert parts[-1].eval_count == 4


async def test_streaming_is_the_default_and_is_lines(serve):
    served = await serve()
    async with served.http() as client:
        answer = await client.post("/api/generate", json={"model": "tiny", "prompt": "Hi"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["response"] for line in lines) == "Hello world."
    assert lines[-1]["done_reason"] == "stop"


async def test_generate(serve):
    served = await serve()
    client = served.ollama()
    answer = await client.generate("tiny", "Hi", system="Be brief.", think=False, keep_alive="10m")
    raw = await client.generate("tiny", "<s>Hi", raw=True, keep_alive=-1, options={"num_predict": -1})
    assert answer.response == raw.response == "Hello world."
    asked, as_it_is = served.engine.requests
    assert asked.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    assert asked.template_args == {"enable_thinking": False}
    assert (as_it_is.messages, as_it_is.prompt, as_it_is.max_tokens) == (None, "<s>Hi", None)


async def test_logprobs(serve):
    served = await serve(Script(texts=("a", "b")))
    client = served.ollama()
    answer = await client.generate("tiny", "Hi", logprobs=True, top_logprobs=1)
    parts = [part async for part in await client.chat("tiny", HELLO, logprobs=True, stream=True)]
    assert [(token.token, token.logprob, len(token.top_logprobs)) for token in answer.logprobs] == [
        ("a", -0.5, 1),
        ("b", -0.5, 1),
    ]
    assert [token.token for part in parts for token in part.logprobs or ()] == ["a", "b"]


async def test_an_empty_prompt_loads_the_model(serve):
    served = await serve()
    client = served.ollama()
    loaded = await client.generate("tiny")
    again = await client.chat("tiny", [])
    assert (loaded.done_reason, again.done_reason) == ("load", "load")
    assert served.starter.attempts == 1
    assert served.engine.requests == []


async def test_keep_alive(serve, eventually):
    served = await serve()
    client = served.ollama()
    before = datetime.now(UTC)
    lives = {}
    for given in ("2h", 90, "1h30m", -1, "-1m", None):
        await client.chat("tiny", HELLO, keep_alive=given)
        (running,) = (await client.ps()).models
        lives[given] = (running.expires_at - before).total_seconds()
    assert lives["2h"] == pytest.approx(7200, abs=60)
    assert lives[90] == pytest.approx(90, abs=60)
    assert lives["1h30m"] == pytest.approx(5400, abs=60)
    assert lives[-1] > 10**9
    assert lives["-1m"] > 10**9
    assert lives[None] < 10**6, "the settings decide again"
    parts = [part async for part in await client.chat("tiny", HELLO, keep_alive="0", stream=True)]
    assert parts[-1].done
    await eventually(lambda: served.running.supervisor.loaded() == [])
    await eventually(lambda: served.engine.closed)


async def test_an_empty_prompt_without_keep_alive_unloads_the_model(serve):
    served = await serve()
    client = served.ollama()
    await client.embed("tiny", "a", keep_alive=-1)
    for call in (client.generate("tiny", keep_alive=0), client.chat("tiny", [], keep_alive="0s")):
        assert (await call).done_reason == "unload"
        assert (await client.ps()).models == []
    assert served.engine.closed
    assert served.starter.attempts == 1
    with pytest.raises(ollama.ResponseError) as unknown:
        await client.generate("huge", keep_alive=0)
    assert unknown.value.status_code == 404


async def test_a_larger_context_than_there_is_is_refused(serve):
    served = await serve()
    with pytest.raises(ollama.ResponseError, match="num_ctx") as whole:
        await served.ollama().chat("tiny", HELLO, options={"num_ctx": 257})
    with pytest.raises(ollama.ResponseError, match="num_ctx") as streamed:
        await anext(await served.ollama().chat("tiny", HELLO, options={"num_ctx": 257}, stream=True))
    assert whole.value.status_code == streamed.value.status_code == 400
    assert served.engine.requests == []


async def test_models(serve):
    served = await serve()
    client = served.ollama()
    assert (await client.ps()).models == []
    listed = (await client.list()).models
    shown = await client.show("tiny")
    await client.generate("tiny")
    (running,) = (await client.ps()).models
    assert [model.model for model in listed] == ["tiny:f16"]
    assert listed[0].digest == "0" * 64
    assert listed[0].details.format == "gguf"
    assert listed[0].modified_at.year == 2026
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities == ["completion"]
    assert (running.name, running.context_length) == ("tiny:f16", 256)
    assert running.size > 0
    for name in ("huge", "../tiny"):
        with pytest.raises(ollama.ResponseError) as unknown:
            await client.show(name)
        assert unknown.value.status_code == 404


async def test_embed(serve):
    served = await serve()
    client = served.ollama()
    one = await client.embed("tiny", "a")
    two = await client.embed("tiny", ["a", "b"], dimensions=1)
    assert list(map(list, one.embeddings)) == [[1.0, 0.0, 0.0, -0.5]]
    assert list(map(list, two.embeddings)) == [[1.0], [1.0]]
    assert two.prompt_eval_count == 6
    with pytest.raises(ollama.ResponseError, match="dimensions"):
        await client.embed("tiny", "a", dimensions=5)


async def test_version_and_greeting(serve):
    served = await serve()
    async with served.http() as client:
        assert (await client.get("/api/version")).json() == {"version": __version__}
        head, greeting = await client.head("/"), await client.get("/")
    assert (head.status_code, head.text) == (200, "")
    assert greeting.text == "localllm is running"


async def test_what_changes_the_store_is_refused_by_name(serve):
    served = await serve()
    client = served.ollama()
    for call in (
        client.pull("x"),
        client.push("x"),
        client.create("x"),
        client.copy("tiny", "x"),
        client.delete("tiny"),
    ):
        with pytest.raises(ollama.ResponseError, match="is not supported") as refused:
            await call
        assert refused.value.status_code == 501


async def test_errors(serve):
    served = await serve(Script(refuse=ContextLengthError(900, 256)), Script(error=EngineDiedError("Dead.")))
    client = served.ollama()
    with pytest.raises(ollama.ResponseError) as too_long:
        await client.chat("tiny", HELLO)
    parts = []
    with pytest.raises(ollama.ResponseError, match=r"Dead\."):  # noqa: PT012  the error comes from the loop itself
        async for part in await client.chat("tiny", HELLO, stream=True):
            parts.append(part)
    with pytest.raises(ollama.ResponseError) as wrong_key:
        await served.ollama(authorization="Bearer wrong").list()
    assert too_long.value.status_code == 400
    assert "900 tokens" in too_long.value.error
    assert len(parts) == 3
    assert wrong_key.value.status_code == 401


async def test_a_client_that_goes_away_cancels(serve, eventually):
    served = await serve(Script(hold=1))
    answer = await served.ollama().chat("tiny", HELLO, stream=True)
    await anext(answer)
    await answer.aclose()
    await eventually(lambda: served.engine.cancelled == 1)


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        (OllamaChatRequest, {"options": {"num_gpu": 3}}, "options.num_gpu"),
        (OllamaChatRequest, {"options": {"mirostat": 1}}, "options.mirostat"),
        (OllamaChatRequest, {"options": {"typical_p": 0.5}}, "options.typical_p"),
        (OllamaGenerateRequest, {"suffix": "x"}, "suffix"),
        (OllamaGenerateRequest, {"template": "x"}, "template"),
        (OllamaGenerateRequest, {"context": [1]}, "context"),
        (OllamaGenerateRequest, {"images": ["aGk="]}, "images"),
        (OllamaGenerateRequest, {"width": 5}, "width"),
        (EmbedRequest, {"input": "a", "truncate": True}, "truncate"),
        (ShowRequest, {"verbose": True}, "verbose"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(kind, more, param):
    with pytest.raises(HTTPError) as error:
        validate(kind, {"model": "tiny", **more})
    assert (error.value.code, error.value.param) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages.0.images"),
        ({"think": True}, "think"),
        ({"think": 0}, "think"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": True}, "keep_alive"),
        ({"keep_alive": ["5m"]}, "keep_alive"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"stop": [""]}}, "options.stop.0"),
        ({"top_logprobs": 2}, ""),
    ],
)
def test_wrong_values_are_named(more, param):
    with pytest.raises(HTTPError) as error:
        validate(OllamaChatRequest, {**CHAT, **more})
    assert error.value.param.startswith(param)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", None),
        ("json", Constraint("json_object")),
        ({"type": "object"}, Constraint("json_schema", '{"type": "object"}', lenient=True)),
    ],
)
def test_formats(given, expected):
    assert validate(OllamaChatRequest, {**CHAT, "format": given}).generate_request("").constraint == expected


@pytest.mark.parametrize("given", ["yaml", 5, ["json"]])
def test_unknown_formats(given):
    with pytest.raises(HTTPError) as error:
        validate(OllamaChatRequest, {**CHAT, "format": given})
    assert error.value.param.startswith("format")


def test_a_raw_prompt_has_no_system():
    with pytest.raises(HTTPError):
        validate(OllamaGenerateRequest, {"model": "tiny", "prompt": "x", "raw": True, "system": "y"})


@pytest.mark.parametrize(
    ("parameters", "text"), [(0, "0"), (999, "999"), (134_515_008, "134.5M"), (7_241_732_096, "7.2B")]
)
def test_sizes(parameters, text):
    assert _short(parameters) == text


def test_metadata_that_json_cannot_hold_is_left_out():
    manifest = Manifest("tiny", "f16", "test", "gguf", (), parameters=5)
    header = GGUFHeader(3, {"a": math.inf, "b": 1.5, "tokenizer.chat_template": "x", "c": (1, 2)}, (), 32, 0)
    assert _model_info(header, manifest) == {"b": 1.5, "general.parameter_count": 5}
