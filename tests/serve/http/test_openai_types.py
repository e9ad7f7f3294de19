"""What a request may say, and how what it may not say is refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.types import SamplingParams
from serve.http.errors import HTTPError
from serve.http.json_body import MAX_DEPTH, parse_json
from serve.http.openai_types import MAX_CHOICES, ChatRequest, CompletionRequest, EmbeddingsRequest
from serve.http.wire_types import MAX_SEED, validate

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "tiny", "prompt": "Hi"}


def refused(kind, raw) -> HTTPError:
    with pytest.raises(HTTPError) as error:
        validate(kind, raw)
    assert error.value.status == 400
    return error.value


def test_defaults():
    (request,) = validate(ChatRequest, CHAT).generate_requests()
    assert request.sampling == SamplingParams()
    assert request.max_tokens is None
    assert request.messages == ({"role": "user", "content": "Hi"},)


def test_everything_that_is_supported():
    request = validate(
        ChatRequest,
        {
            "model": "tiny",
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    "name": "Al",
                },
                {"role": "assistant", "content": "", "refusal": None, "tool_calls": None},
            ],
            "temperature": 0,
            "top_p": 1,
            "top_k": 0,
            "min_p": 0.5,
            "repeat_penalty": 1.1,
            "repeat_last_n": -1,
            "frequency_penalty": -2,
            "presence_penalty": 2.0,
            "seed": 0,
            "stop": ["a"] * 16,
            "max_completion_tokens": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    (generate,) = request.generate_requests("somebody")
    assert generate.client == "somebody"
    assert [message["role"] for message in generate.messages] == ["system", "user", "assistant"]
    assert generate.messages[1] == {"role": "user", "content": "a\nb", "name": "Al"}
    assert generate.sampling == SamplingParams(0, 0, 1, 0.5, 1.1, -2, 2.0, -1, 0)
    assert generate.max_tokens == 7
    assert generate.stop == ("a",) * 16
    assert generate.template_args == {"enable_thinking": False}
    assert request.include_usage


@pytest.mark.parametrize(
    "field",
    [
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"n": 1},
        {"logprobs": False},
        {"logprobs": None},
        {"service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"reasoning_effort": None},
        {"temperature": None},
        {"stop": None},
        {"seed": None},
        {"max_tokens": None},
        {"stream_options": None},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(field):
    given = validate(ChatRequest, {**CHAT, **field}).generate_requests()
    assert given == validate(ChatRequest, CHAT).generate_requests()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("store", True),
        ("echo", True),
        ("web_search_options", {}),
        ("reasoning_effort", "low"),
        ("service_tier", "priority"),
        ("best_of", 3),
        ("cache_prompt", True),
        ("json_schema", {}),
    ],
)
def test_unsupported_fields_are_refused_by_name(field, value):
    error = refused(ChatRequest, {**CHAT, field: value})
    assert (error.code, error.param) == ("unsupported_parameter", field)
    assert f"`{field}`" in error.message


@pytest.mark.parametrize("field", [{"suffix": "x"}, {"best_of": 2}, {"top_logprobs": 2}, {"max_completion_tokens": 4}])
def test_unsupported_fields_of_completions(field):
    assert refused(CompletionRequest, {**TEXT, **field}).code == "unsupported_parameter"


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -0.1},
        {"temperature": 5.1},
        {"temperature": "0.5"},
        {"temperature": True},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": 2},
        {"repeat_penalty": 0},
        {"frequency_penalty": 2.1},
        {"seed": -1},
        {"seed": 2**32 - 1},
        {"stop": ""},
        {"stop": ["a"] * 17},
        {"stop": ["a", ""]},
        {"stop": "a" * 513},
        {"max_tokens": 0},
        {"n": 0},
        {"n": 17},
        {"n": True},
        {"logprobs": 2},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"9" * 5000: 1}},
        {"logit_bias": {"2147483648": 1}},
        {"logit_bias": {str(token): 1 for token in range(1025)}},
        {"logit_bias": [1]},
        {"ignore_eos": 1},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"model": ""},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"chat_template_kwargs": {"messages": "x"}},
        {"chat_template_kwargs": {"a": [1]}},
    ],
)
def test_wrong_values_are_refused(field):
    error = refused(ChatRequest, {**CHAT, **field})
    assert error.code in {"invalid_value", "unsupported_parameter"}
    assert error.param.split(".")[0] in {*field, ""}


def test_choices_have_seeds_of_their_own():
    requests = validate(ChatRequest, {**CHAT, "n": 3, "seed": MAX_SEED - 1}).generate_requests()
    assert [request.sampling.seed for request in requests] == [MAX_SEED - 1, MAX_SEED, 0]
    unseeded = validate(CompletionRequest, {**TEXT, "n": 2, "prompt": ["a", "b"]}).generate_requests()
    assert [(request.prompt, request.sampling.seed) for request in unseeded] == [(p, None) for p in "aabb"]


def test_too_many_choices():
    assert validate(CompletionRequest, {**TEXT, "n": 2, "prompt": ["a"] * (MAX_CHOICES // 2)})
    refused(CompletionRequest, {**TEXT, "n": 3, "prompt": ["a"] * (MAX_CHOICES // 2)})


def test_logprobs_bias_and_ignore_eos():
    more = {"logprobs": True, "top_logprobs": 3, "logit_bias": {"5": -100, "0": 1.5}, "ignore_eos": True}
    (chat,) = validate(ChatRequest, {**CHAT, **more}).generate_requests()
    assert (chat.n_logprobs, chat.prompt_logprobs, chat.ignore_eos) == (3, False, True)
    assert chat.sampling.logit_bias == ((5, -100), (0, 1.5))
    (bare,) = validate(ChatRequest, {**CHAT, "logprobs": True}).generate_requests()
    assert bare.n_logprobs == 0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"echo": True}, (None, False, 16)),
        ({"echo": True, "max_tokens": 0, "logprobs": 5}, (5, True, 0)),
        ({"logprobs": 0}, (0, False, 16)),
    ],
)
def test_echo(more, expected):
    (request,) = validate(CompletionRequest, {**TEXT, **more}).generate_requests()
    assert (request.n_logprobs, request.prompt_logprobs, request.max_tokens) == expected


@pytest.mark.parametrize("more", [{"max_tokens": 0}, {"logprobs": True}, {"logprobs": 21}, {"echo": 1}])
def test_wrong_completions(more):
    refused(CompletionRequest, {**TEXT, **more})


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_missing_fields_are_named(missing):
    error = refused(ChatRequest, {name: value for name, value in CHAT.items() if name != missing})
    assert (error.code, error.param) == ("missing_required_parameter", missing)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_other_parts_are_refused_by_name(kind):
    part = {"type": kind, kind: {"url": "http://169.254.0.1/secret"}}
    error = refused(ChatRequest, {**CHAT, "messages": [{"role": "user", "content": [part]}]})
    assert error.code == "unsupported_parameter"
    assert kind in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("kind", [None, 1, ["text"], {"text": "text"}])
def test_parts_whose_type_is_no_text_are_refused(kind):
    error = refused(ChatRequest, {**CHAT, "messages": [{"role": "user", "content": [{"type": kind, "text": "x"}]}]})
    assert (error.code, error.param) == ("unsupported_parameter", "messages.0.content")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ],
)
def test_prompts(prompt, expected):
    requests = validate(CompletionRequest, {"model": "tiny", "prompt": prompt}).generate_requests()
    assert [request.prompt for request in requests] == expected


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [1.5], [True], 5, [["a"]], ["a"] * 65, [2**31]])
def test_wrong_prompts(prompt):
    refused(CompletionRequest, {"model": "tiny", "prompt": prompt})


@pytest.mark.parametrize(
    "more", [{"encoding_format": "int8"}, {"dimensions": 0}, {"input": []}, {"input": ["a"] * 2049}]
)
def test_wrong_embeddings(more):
    refused(EmbeddingsRequest, {"model": "tiny", "input": "a", **more})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*ChatRequest.model_fields, "tools", "n", "user", "zzz"])


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_value_is_accepted_or_refused_cleanly(fields):
    with suppress(HTTPError):
        validate(ChatRequest, {**CHAT, **fields}).generate_requests()


def test_json_depth_is_bounded():
    allowed = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_json(allowed)
    with pytest.raises(HTTPError):
        parse_json(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")
