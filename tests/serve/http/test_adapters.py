"""Adapters, priorities and time limits as requests ask for them, in every API; the engines are scripted."""

import openai
import pytest

from localllm.adapters import AdapterStore
from tests.fakes.gguf_files import write_tiny_lora
from tests.fakes.mlx_models import make_adapter

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def served(serve, home, tmp_path):
    """A server with the model ``tiny``, the adapters ``a`` and ``b`` for it, and ``m`` in MLX form only."""
    served = await serve()
    base = home.models / "tiny" / "f16" / "model.gguf"
    store = AdapterStore(home)
    for seed, name in enumerate("ab"):
        store.install(write_tiny_lora(tmp_path / f"{name}.gguf", base, seed=seed), base="tiny")
    store.install(make_adapter(tmp_path / "m"), base="tiny")
    return served


def path(home, name):
    return str(home.adapters / name / "adapter.gguf")


ASKS = {
    "chat": ("/v1/chat/completions", {"messages": USER}),
    "completions": ("/v1/completions", {"prompt": "Hi"}),
    "responses": ("/v1/responses", {"input": "Hi"}),
    "anthropic": ("/v1/messages", {"messages": USER, "max_tokens": 5}),
    "ollama": ("/api/chat", {"messages": USER, "stream": False}),
    "ollama generate": ("/api/generate", {"prompt": "Hi", "stream": False}),
}


@pytest.mark.parametrize("api", ASKS)
async def test_a_models_name_may_name_adapters(served, home, api):
    url, body = ASKS[api]
    async with served.http() as http:
        reply = await http.post(url, json={"model": "tiny+a+b", **body})
        plain = await http.post(url, json={"model": "tiny", **body})
    assert reply.status_code == plain.status_code == 200
    assert reply.json()["model"] == "tiny:f16+a+b"
    assert served.engine.requests[0].adapters == ((path(home, "a"), 1.0), (path(home, "b"), 1.0))
    assert served.engine.requests[1].adapters == ()
    assert len(served.starter.started) == 1, "no model is loaded anew for an adapter"


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_field_adapters_has_names_and_scales(served, home, api, stream):
    url, body = ASKS[api]
    adapters = ["a", {"name": "b", "scale": 0.5}]
    async with served.http() as http:
        reply = await http.post(url, json={"model": "tiny", "adapters": adapters, "stream": stream, **body})
    assert reply.status_code == 200
    assert "tiny:f16+a+b" in reply.text
    assert served.engine.requests[0].adapters == ((path(home, "a"), 1.0), (path(home, "b"), 0.5))


async def test_an_adapter_of_scale_0_is_none(served):
    async with served.http() as http:
        body = {"model": "tiny", "adapters": [{"name": "a", "scale": 0}], "messages": USER}
        reply = await http.post("/v1/chat/completions", json=body)
    assert reply.json()["model"] == "tiny:f16"
    assert served.engine.requests[0].adapters == ()


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"model": "tiny+nothing"}, 404, "model_not_found"),
        ({"model": "tiny+"}, 404, "model_not_found"),
        ({"model": "tiny+../../a"}, 404, "model_not_found"),
        ({"model": "nothing+a"}, 404, "model_not_found"),
        ({"model": "tiny", "adapters": ["/etc/passwd"]}, 404, "model_not_found"),
        ({"model": "tiny+m"}, 400, "invalid_request"),
        ({"model": "tiny+a+a"}, 400, "invalid_request"),
        ({"model": "tiny+a", "adapters": ["a"]}, 400, "invalid_request"),
        ({"model": "tiny" + "+a" * 9}, 400, "invalid_request"),
        ({"model": "tiny", "adapters": ["a"] * 9}, 400, "invalid_value"),
        ({"model": "tiny", "adapters": "a"}, 400, "invalid_value"),
        ({"model": "tiny", "adapters": [{"name": "a", "scale": "1"}]}, 400, "invalid_value"),
        ({"model": "tiny", "adapters": [{"name": "a", "path": "/x"}]}, 400, "unsupported_parameter"),
        ({"model": "tiny", "priority": 11}, 400, "invalid_value"),
        ({"model": "tiny", "priority": 0.5}, 400, "invalid_value"),
        ({"model": "tiny", "timeout": 0}, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_is_refused(served, asked, status, code):
    async with served.http() as http:
        reply = await http.post("/v1/chat/completions", json={"messages": USER, **asked})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert not served.starter.started


async def test_a_model_of_llama_cpp_says_that_it_needs_the_other_form(served):
    async with served.openai() as client:
        with pytest.raises(openai.BadRequestError, match="GGUF") as caught:
            await client.chat.completions.create(model="tiny+m", messages=USER)
    assert caught.value.param == "adapters"
    assert "Export" in caught.value.body["hint"]


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
async def test_priority_and_timeout_reach_the_engine(served, api):
    url, body = ASKS[api]
    async with served.http() as http:
        await http.post(url, json={"model": "tiny", "priority": -3, "timeout": 2.5, **body})
        await http.post(url, json={"model": "tiny", **body})
    assert [(request.priority, request.deadline) for request in served.engine.requests] == [(-3, 2.5), (0, None)]


async def test_models_are_listed_with_the_adapters_made_for_them(served):
    async with served.openai() as client:
        assert [model.id async for model in client.models.list()] == ["tiny:f16", "tiny:f16+a", "tiny:f16+b"]
        assert (await client.models.retrieve("tiny+b")).id == "tiny:f16+b"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("tiny+c")
    tags = await served.ollama().list()
    assert [model.model for model in tags.models] == ["tiny:f16", "tiny:f16+a", "tiny:f16+b"]
    assert tags.models[1].details.parent_model == "tiny:f16"
    assert (await served.ollama().show("tiny+a")).details.parent_model == "tiny:f16"


async def test_embeddings_are_made_without_adapters(served):
    async with served.openai() as client:
        with pytest.raises(openai.BadRequestError, match="without adapters"):
            await client.embeddings.create(model="tiny+a", input="x")


async def test_tokens_are_those_of_the_model(served):
    async with served.http() as http:
        replies = [await http.post("/tokenize", json={"model": name, "content": "Hi"}) for name in ("tiny", "tiny+a")]
    assert replies[0].json() == replies[1].json()


async def test_a_removed_adapter_is_gone_at_once(served, home):
    store = AdapterStore(home)
    async with served.http() as http:
        assert (await http.post("/v1/completions", json={"model": "tiny+a", "prompt": "x"})).status_code == 200
        store.remove(store.resolve("a"))
        assert (await http.post("/v1/completions", json={"model": "tiny+a", "prompt": "x"})).status_code == 404
