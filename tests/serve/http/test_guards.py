"""Host, Origin, keys, content type and size: what never reaches a route."""

import asyncio
import json
import logging

import pytest

from localllm.errors import SettingsError
from serve.http.guards import MAX_BODY, is_loopback
from serve.http.server import ServerOptions
from tests.fakes.engine import EngineStarter, Script
from tests.serve.http.conftest import serving

ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("GET", "/api/tags"),
    ("POST", "/api/show"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
    ("POST", "/api/pull"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("POST", "/internal/load"),
    ("POST", "/internal/shutdown"),
    ("GET", "/nowhere"),
]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def code(response) -> str:
    error = response.json()["error"]
    if isinstance(error, str):  # Ollama's shape
        error = {**response.json(), "message": error}
    assert set(error) >= {"message", "type", "param", "code"}
    return error["code"]


async def test_foreign_hosts_and_origins_are_refused_on_every_route(serve):
    served = await serve()
    async with served.http() as client:
        for method, path in ROUTES:
            for name in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "127.0.0.1:x", "::1", ""):
                response = await client.request(method, path, headers={"host": name})
                assert (response.status_code, code(response)) == (403, "forbidden_host"), (path, name)
            for origin in ("https://evil.example", "null", "http://localhost.evil.example", "file://", "http://[::1"):
                response = await client.request(method, path, headers={"origin": origin})
                assert (response.status_code, code(response)) == (403, "forbidden_origin"), (path, origin)
    assert served.starter.attempts == 0


async def test_loopback_hosts_and_origins_pass(serve):
    served = await serve()
    async with served.http() as client:
        for name in ("localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:80"):
            assert (await client.get("/v1/models", headers={"host": name})).status_code == 200
        for origin in ("http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"):
            response = await client.get("/v1/models", headers={"origin": origin})
            assert response.status_code == 200
            assert not [header for header in response.headers if header.startswith("access-control")]


async def test_two_host_headers_are_refused(serve):
    served = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.record.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split()[1] in {b"400", b"403"}


async def test_configured_hosts_pass(serve):
    served = await serve(options=ServerOptions(managed=False, allow_hosts=("My-Mac.local",)))
    async with served.http() as client:
        assert (await client.get("/v1/models", headers={"host": "my-mac.local:11435"})).status_code == 200


async def test_a_managed_server_asks_for_its_token(serve):
    served = await serve()
    async with served.http(authorization="Bearer nonsense") as client:
        for method, path in ROUTES:
            response = await client.request(method, path, json={})
            if path == "/health":
                assert response.json() == {"status": "ok"}
            else:
                assert (response.status_code, code(response)) == (401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models", headers={"authorization": f"Basic {served.token}"})).status_code == 401
        known = await client.get("/health", headers={"authorization": f"bearer {served.token}"})
        assert known.json()["models"] == []


async def test_an_open_server_guards_its_own_routes_only(serve):
    served = await serve(options=ServerOptions(managed=False))
    async with served.http(authorization="Bearer none") as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.post("/internal/shutdown", json={})).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_a_bind_that_others_reach_needs_a_key(home, host):
    with pytest.raises(SettingsError) as error:
        async with serving(home, options=ServerOptions(host=host, managed=False)):
            pass
    assert "LOCALLLM_API_KEY" in error.value.hint
    assert not home.server_file.exists()


async def test_with_a_key_it_may_be_bound(home):
    async with serving(home, options=ServerOptions(host="0.0.0.0", managed=False, api_key="k")) as served:
        assert served.base_url.startswith("http://127.0.0.1:")
        async with served.http(authorization="") as client:
            assert (await client.get("/v1/models")).status_code == 401


def test_loopback():
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(host) for host in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example"))


async def test_only_json(serve):
    served = await serve()
    async with served.http() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"):
            response = await client.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
            assert (response.status_code, code(response)) == (415, "unsupported_media_type")
        for kind in ("application/json; charset=utf-8", "Application/JSON"):
            content = json.dumps(CHAT).encode()
            response = await client.post("/v1/chat/completions", content=content, headers={"content-type": kind})
            assert response.status_code == 200


async def test_body_caps(serve):
    served = await serve()

    async def pieces():
        for _ in range(MAX_BODY // 65536 + 2):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    async with served.http() as client:
        whole = await client.post("/v1/chat/completions", content=b" " * (MAX_BODY + 1), headers=headers)
        chunked = await client.post("/v1/chat/completions", content=pieces(), headers=headers)
    for response in (whole, chunked):
        assert (response.status_code, code(response)) == (413, "request_too_large")


async def test_unknown_paths_and_methods(serve):
    served = await serve()
    async with served.http() as client:
        assert code(await client.get("/v1/files")) == "not_found"
        assert (await client.get("/health/")).status_code == 404
        response = await client.get("/v1/chat/completions")
        assert (response.status_code, code(response)) == (405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
        assert (await client.delete("/v1/models/tiny")).status_code == 405


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model":"tiny","messages":[{"role":"user","content":"\xc3"}]}',
        b'{"model":"tiny","model":"tiny"}',
        b'{"temperature":NaN}',
        b'{"temperature":-Infinity}',
        b'{"temperature":1e999}',
        b'{"seed":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
        b"[" * 1_000_000,
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
    ],
)
async def test_malformed_json_is_a_400(serve, raw):
    served = await serve()
    async with served.http() as client:
        response = await client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert code(response)
    assert served.starter.attempts == 0


async def test_no_prompt_reaches_a_log_or_an_error(serve, caplog, home):
    canary = "canary-4711"
    caplog.set_level(logging.DEBUG)
    served = await serve(Script(texts=(canary,)))
    async with served.http() as client:
        for more in ({}, {"stream": True}, {"stop": 5, "user": canary}, {"temperature": canary}, {"seed": [canary]}):
            body = {"model": "tiny", "messages": [{"role": "user", "content": canary}], **more}
            response = await client.post("/v1/chat/completions", json=body)
            assert (response.status_code == 200) == (canary in response.text)
        broken = f'{{"model":"tiny","messages":[{{"role":"user","content":"{canary}'.encode()
        headers = {"content-type": "application/json"}
        assert canary not in (await client.post("/v1/chat/completions", content=broken, headers=headers)).text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert canary not in "\n".join(ours)
    assert not [path for path in home.root.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


async def test_a_bug_is_a_500_without_details(serve, monkeypatch, caplog):
    served = await serve()

    async def broken(self, spec, *, log_path):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(EngineStarter, "__call__", broken)
    async with served.http() as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, code(response)) == (500, "server_failed")
    assert "inside" not in response.text
    assert "ZeroDivisionError" in caplog.text
