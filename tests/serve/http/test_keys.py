"""Named keys: what each may be used for, and when it may no longer."""

import asyncio

import pytest

from localllm.api_keys import SCOPES, KeyStore
from localllm.errors import SettingsError
from serve.http.scopes import ANY_KEY, scope_of
from serve.http.server import ServerOptions
from tests.fakes.engine import Script
from tests.serve.http.conftest import serving

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
OPEN = ServerOptions(managed=False)
# One request for each scope.
NEEDS = {
    "chat": ("POST", "/v1/chat/completions", CHAT),
    "embed": ("POST", "/v1/embeddings", {"model": "tiny", "input": "Hi"}),
    "models": ("GET", "/v1/models", None),
    "metrics": ("GET", "/metrics", None),
}


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def status(client, scope: str, key: str) -> int:
    method, path, body = NEEDS[scope]
    return (await client.request(method, path, json=body, headers=auth(key))).status_code


@pytest.mark.parametrize("scope", NEEDS)
async def test_a_key_opens_what_it_is_for_and_nothing_else(serve, home, scope):
    key = KeyStore(home).add("one", (scope,))
    served = await serve(options=OPEN)
    async with served.http() as client:
        for wanted in NEEDS:
            assert await status(client, wanted, key) == (200 if wanted == scope else 403), wanted
        refused = await client.post("/internal/shutdown", json={}, headers=auth(key))
        assert refused.status_code == 403


async def test_admin_opens_everything(serve, home):
    key = KeyStore(home).add("boss", ("admin",))
    served = await serve(options=OPEN)
    async with served.http() as client:
        assert [await status(client, scope, key) for scope in NEEDS] == [200] * 4


async def test_the_refusal_names_the_scope_in_each_apis_shape(serve, home):
    key = KeyStore(home).add("one", ("metrics",))
    served = await serve(options=OPEN)
    async with served.http(**auth(key)) as client:
        ours = (await client.post("/v1/chat/completions", json=CHAT)).json()
        assert (ours["error"]["code"], ours["error"]["type"]) == ("insufficient_scope", "permission_error")
        assert "`chat`" in ours["error"]["message"]
        theirs = (await client.post("/v1/messages", json={})).json()
        assert (theirs["type"], theirs["error"]["type"]) == ("error", "permission_error")
        assert "`chat`" in theirs["error"]["message"]
        ollamas = (await client.post("/api/embed", json={})).json()
        assert "`embed`" in ollamas["error"]
    assert served.starter.attempts == 0


async def test_a_removed_key_is_refused_at_once_and_a_new_one_accepted(serve, home):
    store = KeyStore(home)
    first = store.add("first")
    served = await serve(options=OPEN)
    async with served.http() as client:
        assert await status(client, "chat", first) == 200
        second = store.add("second")
        assert await status(client, "chat", second) == 200
        store.remove("first")
        assert await status(client, "chat", first) == 401
        store.remove("second")
        # It had keys when it started, so it does not become open.
        assert await status(client, "chat", second) == 401


async def test_the_first_key_closes_an_open_server(serve, home):
    served = await serve(options=OPEN)
    async with served.http() as client:
        assert await status(client, "chat", "none") == 200
        key = KeyStore(home).add("first")
        assert await status(client, "chat", "none") == 401
        assert await status(client, "chat", key) == 200


async def test_a_file_damaged_while_running_opens_nothing(serve, home, caplog):
    key = KeyStore(home).add("one")
    served = await serve(options=OPEN)
    home.keys_file.write_text("{")
    async with served.http() as client:
        assert await status(client, "chat", key) == 401
        assert await status(client, "chat", served.token) == 200
    assert "damaged" in caplog.text
    assert key not in caplog.text


async def test_a_damaged_file_stops_the_start(home):
    home.keys_file.write_text("{")
    with pytest.raises(SettingsError):
        async with serving(home):
            pass


async def test_the_servers_own_keys_may_do_everything(serve, home):
    KeyStore(home).add("one", ("embed",))
    served = await serve(options=ServerOptions(managed=False, api_key="secret"))
    async with served.http() as client:
        for key in ("secret", served.token):
            assert [await status(client, scope, key) for scope in NEEDS] == [200] * 4


async def test_each_named_key_has_its_own_cached_prefixes(serve, home):
    store = KeyStore(home)
    keys = [store.add("one"), store.add("two")]
    served = await serve(options=OPEN)
    async with served.http() as client:
        for key in (*keys, keys[0]):
            assert await status(client, "chat", key) == 200
    first, second, again = (request.client for request in served.engine.requests)
    assert first == again != second
    assert first != ""


async def test_health_tells_of_models_to_those_who_may_list_them(serve, home):
    store = KeyStore(home)
    lister, other = store.add("lister", ("models",)), store.add("other", ("chat",))
    served = await serve(options=OPEN)
    async with served.http() as client:
        assert "models" in (await client.get("/health", headers=auth(lister))).json()
        assert (await client.get("/health", headers=auth(other))).json() == {"status": "ok"}


async def test_an_answer_under_way_outlives_its_key(serve, home, eventually):
    store = KeyStore(home)
    key = store.add("one")
    script = Script(hold=1)
    served = await serve(script, options=OPEN)
    async with served.http() as client:
        answer = asyncio.create_task(status(client, "chat", key))
        await eventually(lambda: bool(served.starter.started) and served.engine.active == 1)
        store.remove("one")
        script.gate.set()
        assert await answer == 200


async def test_a_bind_that_others_reach_may_have_named_keys_only(home):
    KeyStore(home).add("one")
    options = ServerOptions(host="0.0.0.0", managed=False)
    async with serving(home, options=options) as served, served.http(authorization="") as client:
        assert (await client.get("/v1/models")).status_code == 401


async def test_every_documented_route_has_a_scope_of_its_own(serve):
    """A route that is not in the table asks for ``admin``, which is safe, and wrong for one that is for everybody."""
    served = await serve()
    async with served.http() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    scopes = {path: scope_of(path.replace("{model}", "tiny")) for path in paths}
    assert {path for path, scope in scopes.items() if scope == "admin"} == set()
    assert set(scopes.values()) == {*SCOPES, ANY_KEY} - {"admin"}


@pytest.mark.parametrize(
    "path", ["/internal/shutdown", "/v1/files", "/v1/embeddings/x", "/v1/modelsx", "//", "/api/pull"]
)
def test_what_is_not_listed_needs_admin(path):
    assert scope_of(path) == "admin"
