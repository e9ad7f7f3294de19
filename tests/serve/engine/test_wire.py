"""What goes through the pipe comes out the same."""

import pytest

from localllm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineLoadError,
    LocalLLMError,
    MemoryFitError,
    RequestError,
)
from serve.engine import wire
from serve.engine.types import (
    Delta,
    Embeddings,
    Finished,
    GenerateRequest,
    PromptLogprobs,
    SamplingParams,
    Started,
    TokenLogprob,
    Usage,
)


def through(message):
    frame = wire.encode_frame(message)
    (length,) = wire.HEADER.unpack(frame[: wire.HEADER.size])
    assert length == len(frame) - wire.HEADER.size
    return wire.decode_frame(frame[wire.HEADER.size :])


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(messages=({"role": "user", "content": "ü\x00\n🦙"},), stop=("a", "b"), max_tokens=3),
        GenerateRequest(prompt="t", adapters=(("a.gguf", 0.5), ("b.gguf", 1.0)), priority=-2, deadline=1.5),
        GenerateRequest(prompt="text", sampling=SamplingParams(temperature=0, seed=0)),
        GenerateRequest(prompt=(1, 2, 3), template_args={"enable_thinking": False}, n_logprobs=0, client="k"),
        GenerateRequest(prompt="x", sampling=SamplingParams(logit_bias=((3, -100.0), (4, 1.5))), prompt_logprobs=True),
    ],
)
def test_requests(request_):
    assert wire.request_from_wire(through({"r": wire.request_to_wire(request_)})["r"]) == request_


@pytest.mark.parametrize(
    "event",
    [
        Started(5, 3),
        Delta("é", 1, (TokenLogprob(7, b"\xc3", -0.5, ((b"\xc3", -0.5), (b"", -1.0))), TokenLogprob(8, b"\xa9", -1.0))),
        PromptLogprobs((TokenLogprob(1, b"<s>", None), TokenLogprob(2, b"a", -3.25))),
        wire.Reply([1, 2]),
        wire.Reply("text"),
        Delta("a\u2028", 2),
        Finished("length", Usage(1, 0, 2, 0.5, 0.25)),
        Finished("stop", Usage(1, 0, 2, 0.5, 0.25), "END"),
        Embeddings(((0.5, -1.0), (0.0, 1.0)), 7),
    ],
)
def test_events(event):
    record = through({"e": wire.event_to_wire(9, event)})["e"]
    assert wire.event_from_wire(record) == (9, event)


@pytest.mark.parametrize(
    "error",
    [
        ContextLengthError(10, 5),
        RequestError("no", "try yes", "stop"),
        EngineBusyError("full", "wait"),
        EngineLoadError("bad", ""),
    ],
)
def test_errors_keep_their_class(error):
    _, got = wire.event_from_wire(through({"e": wire.event_to_wire(1, error)})["e"])
    assert type(got) is type(error)
    assert isinstance(got, LocalLLMError)
    assert vars(got) == vars(error)


def test_another_error_arrives_as_an_engine_error():
    _, got = wire.event_from_wire(through({"e": wire.event_to_wire(1, MemoryFitError("big", "less"))})["e"])
    assert type(got).__name__ == "EngineError"
    assert str(got) == "big less"


def test_a_lone_surrogate_does_not_break_the_pipe():
    assert through({"t": "a\ud800b"}) == {"t": "a?b"}
