"""Text to tokens and back."""

import pytest


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [65, 256, 66]),
        ({"add_special": True}, [256, 65, 256, 66]),
        ({"parse_special": False, "add_special": None}, [65, 60, 115, 62, 66]),
    ],
)
async def test_tokenize(serve, more, expected):
    served = await serve()
    async with served.http() as client:
        answer = await client.post("/tokenize", json={"model": "tiny", "content": "A<s>B", **more})
    assert answer.json() == {"tokens": expected}


async def test_pieces(serve):
    served = await serve()
    async with served.http() as client:
        body = {"model": "tiny", "content": "Aé", "with_pieces": True}
        answer = await client.post("/tokenize", json=body)
        refused = await client.post("/tokenize", json={**body, "content": "A" * 4097})
    assert answer.json() == {
        "tokens": [{"id": 65, "piece": "A"}, {"id": 195, "piece": "\ufffd"}, {"id": 169, "piece": "\ufffd"}]
    }
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "with_pieces")


async def test_detokenize(serve):
    served = await serve()
    async with served.http() as client:
        answer = await client.post("/detokenize", json={"model": "tiny", "tokens": [256, 195, 169]})
        empty = await client.post("/detokenize", json={"model": "tiny", "tokens": []})
        outside = await client.post("/detokenize", json={"model": "tiny", "tokens": [65, 999]})
    assert answer.json() == {"content": "<s>é"}
    assert empty.json() == {"content": ""}
    assert (outside.status_code, outside.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"content": "A"}, 400, "model"),
        ("/tokenize", {"model": "tiny"}, 400, "content"),
        ("/tokenize", {"model": "tiny", "content": 5}, 400, "content"),
        ("/tokenize", {"model": "tiny", "content": "A", "pieces": True}, 400, "pieces"),
        ("/tokenize", {"model": "huge", "content": "A"}, 404, None),
        ("/detokenize", {"model": "tiny", "tokens": ["A"]}, 400, "tokens.0"),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"model": "../tiny", "tokens": [1]}, 404, None),
    ],
)
async def test_refusals(serve, path, body, status, param):
    served = await serve()
    async with served.http() as client:
        answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
