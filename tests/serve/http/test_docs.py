"""The OpenAPI document and its page: true, complete, and made without anything from outside."""

import re
from html.parser import HTMLParser

import pytest

REFUSED = {"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/embeddings"}
PRIVATE = {"/internal/shutdown", "/openapi.json", "/docs", "/api/blobs/{digest}"}


@pytest.fixture
async def served(serve):
    return await serve()


@pytest.fixture
async def document(served):
    async with served.http() as client:
        return (await client.get("/openapi.json")).json()


def references(value) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


async def test_every_reference_leads_somewhere(document):
    for reference in references(document):
        prefix, _, name = reference.rpartition("/")
        assert prefix == "#/components/schemas"
        assert name in document["components"]["schemas"]


async def test_every_documented_path_is_there(served, document):
    async with served.http() as client:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answer = await client.request(method, path.replace("{model}", "tiny"), json={})
                expected = 400 if "requestBody" in operation else 200
                assert answer.status_code == expected, (method, path)


async def test_what_is_refused_is_not_documented(served, document):
    async with served.http() as client:
        for path in REFUSED:
            answer = await client.post(path, json={})
            assert answer.status_code == 501
            assert "is not supported" in answer.text
    assert not (REFUSED | PRIVATE) & document["paths"].keys()


async def test_operation_ids_are_unique(document):
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


async def test_errors_have_the_documented_shape(served, document):
    async with served.http() as client:
        for path, item in document["paths"].items():
            if "post" not in item:
                continue
            error = (await client.post(path, json={})).json()
            reference = item["post"]["responses"]["default"]["content"]["application/json"]["schema"]["$ref"]
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            assert set(schema["required"]) <= error.keys(), path


@pytest.mark.parametrize(
    ("name", "field", "kinds"),
    [
        ("ChatRequest", "stop", {"string", "array"}),
        ("ChatMessage", "content", {"string", "array"}),
        ("CompletionRequest", "prompt", {"string", "array"}),
        ("EmbeddingsRequest", "input", {"string", "array"}),
        ("MessagesRequest", "system", {"string", "array"}),
        ("ResponsesRequest", "input", {"string", "array"}),
        ("EmbedRequest", "input", {"string", "array"}),
    ],
)
async def test_short_forms_are_documented(document, name, field, kinds):
    schema = document["components"]["schemas"][name]["properties"][field]
    assert {option["type"] for option in schema["anyOf"]} == kinds


async def test_the_limit_of_prompts_is_none_of_their_tokens(document):
    prompt = document["components"]["schemas"]["CompletionRequest"]["properties"]["prompt"]
    assert "maxItems" not in prompt
    assert [option.get("maxItems") for option in prompt["anyOf"]] == [None, None, 64]


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "action"}]


async def test_the_page_names_everything_and_loads_nothing(served, document):
    async with served.http() as client:
        answer = await client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = Links()
    page.feed(answer.text)
    assert page.links == ["/openapi.json"]
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert not re.search(r"url\(|@import|https?://", answer.text)
    for path in document["paths"]:
        assert f" {path}</code>" in answer.text
    assert "<code>top_logprobs</code></td><td>integer ≥ 0 ≤ 20</td><td>default 0</td>" in answer.text


async def test_both_need_a_key(served):
    async with served.http(authorization="Bearer wrong") as client:
        assert [(await client.get(path)).status_code for path in ("/docs", "/openapi.json")] == [401, 401]
