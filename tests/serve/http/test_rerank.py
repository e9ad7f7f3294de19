"""``/v1/rerank``, in the shape of Jina's and Cohere's APIs, and what is left of ``/v1/embeddings``."""

import base64
import math

import numpy as np
import pytest

from serve.http.errors import HTTPError
from serve.http.rerank import RerankRequest
from serve.http.wire_types import validate

ASKED = {"model": "tiny", "query": "cat", "documents": ["a dog", {"text": "cat cat"}, "a cat"]}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_the_best_come_first(serve, path):
    served = await serve()
    async with served.http() as client:
        answer = (await client.post(path, json=ASKED)).json()
    assert answer["model"] == "tiny:f16"
    assert answer["results"] == [
        {"index": 1, "relevance_score": 2.0},
        {"index": 2, "relevance_score": 1.0},
        {"index": 0, "relevance_score": 0.0},
    ]
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert served.engine.reranked == [("cat", ["a dog", "cat cat", "a cat"])]


async def test_some_with_their_texts(serve):
    served = await serve()
    async with served.http() as client:
        answer = await client.post("/v1/rerank", json={**ASKED, "top_n": 1, "return_documents": True})
        more = await client.post("/v1/rerank", json={**ASKED, "top_n": 9})
    assert answer.json()["results"] == [{"index": 1, "relevance_score": 2.0, "document": {"text": "cat cat"}}]
    assert len(more.json()["results"]) == 3


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"query": " "}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents.1"),
        ({"documents": [{"text": "a", "image": "b"}]}, "documents.0"),
        ({"documents": [["a"]]}, "documents.0"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["a"]}, "rank_fields"),
        ({"max_tokens_per_doc": 5}, "max_tokens_per_doc"),
    ],
)
def test_wrong_values_are_named(more, param):
    with pytest.raises(HTTPError) as error:
        validate(RerankRequest, {**ASKED, **more})
    assert error.value.param == param


async def test_fewer_dimensions_are_of_length_one_again(serve):
    served = await serve()
    async with served.openai() as client:
        plain = await client.embeddings.create(model="tiny", input=["a", "b"], dimensions=3)
        packed = await client.embeddings.create(model="tiny", input=["a", "b"], dimensions=3, encoding_format="base64")
    assert plain.data[1].embedding == pytest.approx([math.sqrt(0.5), 0, math.sqrt(0.5)])
    # The client leaves alone what it was asked to fetch so.
    numbers = np.frombuffer(base64.b64decode(packed.data[1].embedding), "<f4")
    assert numbers.tolist() == pytest.approx(plain.data[1].embedding)
