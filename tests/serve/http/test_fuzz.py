"""Any JSON at any route: answered or refused, never a failure, and nothing of it in a log."""

import logging
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.http.anthropic_types import CountTokensRequest, MessagesRequest
from serve.http.errors import HTTPError
from serve.http.ollama_types import EmbedRequest, OllamaChatRequest, OllamaGenerateRequest, ShowRequest
from serve.http.openai_types import ChatRequest, CompletionRequest, EmbeddingsRequest
from serve.http.rerank import RerankRequest
from serve.http.responses_types import ResponsesRequest
from serve.http.tokens import DetokenizeRequest, TokenizeRequest
from serve.http.wire_types import validate
from tests.fakes.engine import Script

CANARY = "canary-77ab"
MESSAGES = [{"role": "user", "content": CANARY}]
# A good request of each kind, from which the fuzzer starts.
BODIES = {
    "/v1/chat/completions": (ChatRequest, {"messages": MESSAGES}),
    "/v1/completions": (CompletionRequest, {"prompt": CANARY}),
    "/v1/embeddings": (EmbeddingsRequest, {"input": CANARY}),
    "/v1/rerank": (RerankRequest, {"query": CANARY, "documents": [CANARY]}),
    "/v1/responses": (ResponsesRequest, {"input": CANARY}),
    "/v1/messages": (MessagesRequest, {"messages": MESSAGES, "max_tokens": 5}),
    "/v1/messages/count_tokens": (CountTokensRequest, {"messages": MESSAGES}),
    "/api/chat": (OllamaChatRequest, {"messages": MESSAGES}),
    "/api/generate": (OllamaGenerateRequest, {"prompt": CANARY}),
    "/api/embed": (EmbedRequest, {"input": CANARY}),
    "/api/show": (ShowRequest, {}),
    "/tokenize": (TokenizeRequest, {"content": CANARY}),
    "/detokenize": (DetokenizeRequest, {"tokens": [65]}),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
# Not only junk: values that some field takes lead further in.
VALUES = JSON | st.sampled_from(
    [
        0,
        1,
        True,
        CANARY,
        [CANARY],
        MESSAGES,
        [{"role": "assistant", "content": [{"type": "text", "text": CANARY}]}],
        {"format": {"type": "json_schema", "schema": {}}},
        {"num_ctx": 10**9},
        {"5": 1.5},
        {"type": "json_object"},
        ["message.output_text.logprobs"],
    ]
)


def fields_of(kind):
    return st.dictionaries(st.sampled_from([*kind.model_fields, *kind.INERT, "zzz"]), VALUES, max_size=4)


@pytest.mark.parametrize("path", BODIES)
@given(st.data())
def test_any_fields_are_accepted_or_refused_cleanly(path, data):
    kind, body = BODIES[path]
    fields = data.draw(fields_of(kind))
    with suppress(HTTPError):
        request = validate(kind, {"model": "tiny", **body, **fields})
        if hasattr(request, "generate_request"):
            request.generate_request("client")
        elif hasattr(request, "generate_requests"):
            request.generate_requests("client")


def drawn_requests() -> list[tuple[str, dict]]:
    """A few dozen requests; the same ones every time, because a whole server answers them."""
    drawn: list[tuple[str, dict]] = []

    @settings(max_examples=15, derandomize=True, database=None)
    @given(st.data())
    def draw(data):
        drawn.extend((path, data.draw(fields_of(kind))) for path, (kind, _) in BODIES.items())

    draw()
    return drawn


async def test_no_request_makes_the_server_fail_or_talk(serve, caplog):
    drawn = drawn_requests()
    caplog.set_level(logging.DEBUG)
    served = await serve(Script(texts=("a", CANARY)))
    async with served.http() as client:
        for path, (_, body) in BODIES.items():
            good = await client.post(path, json={"model": "tiny", **body})
            assert good.status_code == 200, (path, good.text)
        for path, fields in drawn:
            answer = await client.post(path, json={"model": "tiny", **BODIES[path][1], **fields})
            assert answer.status_code < 500 or answer.status_code == 501, (path, fields, answer.text)
    assert CANARY not in caplog.text
