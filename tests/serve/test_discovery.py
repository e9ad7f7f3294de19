"""Finding and starting servers, with real processes; no model is needed for it."""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from localllm import __version__
from localllm.errors import ServerError
from localllm.settings import Settings
from serve import discovery
from serve.discovery import ServerRecord, ServerRunningError, connect, running_server, server_lock

SETTINGS = Settings(keep_alive=60)


@pytest.fixture
async def ended(home):
    """Ends the server that the test started, and one that was waiting to take its place."""
    yield
    while (record := running_server(home)) is not None:
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
        await asyncio.sleep(0.5)


async def until_gone(home, seconds=15.0):
    async with asyncio.timeout(seconds):
        while running_server(home) is not None or not discovery._lock_is_free(home):  # noqa: ASYNC110  other process
            await asyncio.sleep(0.05)


def record_of(home):
    record = running_server(home)
    assert record is not None
    return record


async def test_a_server_is_started_found_and_stopped(home, ended):
    said = []
    client = await connect(home, SETTINGS, on_status=said.append)
    health = await client.health()
    assert (health["status"], health["version"], health["models"]) == ("ok", __version__, [])
    assert await client.models() == []
    record = record_of(home)
    assert home.server_file.stat().st_mode & 0o777 == 0o600
    assert (home.logs / "server.log").stat().st_mode & 0o777 == 0o600
    assert record.managed
    assert os.getpgid(record.pid) != os.getpgid(0)
    assert said == ["Starting the server…"]

    again = await connect(home, SETTINGS, on_status=said.append)
    assert again.address == client.address
    assert len(said) == 1
    await again.aclose()

    await client.shutdown()
    await until_gone(home)
    assert not home.server_file.exists()
    # A client outlives its server: the next request starts another one.
    assert await client.models() == []
    assert record_of(home).token != record.token
    await client.aclose()


async def test_two_starters_end_up_with_one_server(home, ended):
    clients = await asyncio.gather(*(connect(home, SETTINGS) for _ in range(3)))
    assert len({client.address for client in clients}) == 1
    for client in clients:
        await client.aclose()


async def test_a_stale_file_is_no_server(home, ended):
    ServerRecord(os.getpid(), "127.0.0.1", 9, "old", __version__, True).write(home)
    assert running_server(home) is None
    client = await connect(home, SETTINGS)
    assert record_of(home).token != "old"
    await client.aclose()


async def test_a_killed_server_is_replaced(home, ended):
    client = await connect(home, SETTINGS)
    os.kill(record_of(home).pid, signal.SIGKILL)
    await until_gone(home)
    assert home.server_file.exists()
    assert await client.models() == []
    await client.aclose()


async def test_an_unused_server_ends_by_itself(home, ended):
    client = await connect(home, Settings(keep_alive=1.5))
    began = time.monotonic()
    await asyncio.sleep(0.8)
    await client.models()
    await until_gone(home)
    assert time.monotonic() - began > 1.5
    assert not home.server_file.exists()
    await client.aclose()


async def test_another_version_of_the_apps_server_is_replaced(home, ended):
    client = await connect(home, SETTINGS)
    old = record_of(home)
    replace(old, version="0.0.1").write(home)
    other = await connect(home, SETTINGS)
    assert record_of(home).pid != old.pid
    assert (await other.health())["version"] == __version__
    await client.aclose()
    await other.aclose()


async def test_another_version_of_a_persons_server_is_named(home):
    ServerRecord(1, "127.0.0.1", 4711, "t", "0.0.1", False).write(home)
    with server_lock(home), pytest.raises(ServerRunningError, match=r"0\.0\.1.*127\.0\.0\.1:4711"):
        await connect(home, SETTINGS)


async def test_a_server_that_dies_at_its_start_is_reported_with_its_last_line(home, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho 'the reason\033[31m' >&2\nexit 7\n")
    python.chmod(0o755)
    (home.logs / "server.log").write_text("from before\n")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ServerError, match="the reason␛") as error:
        await connect(home, SETTINGS)
    assert "server.log" in error.value.hint


async def test_a_silent_start_runs_into_the_deadline(home, monkeypatch):
    monkeypatch.setattr(discovery, "START_SECONDS", 0.3)
    with server_lock(home), pytest.raises(ServerError, match="did not answer"):
        await connect(home, SETTINGS)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"pid":1}', json.dumps(vars(ServerRecord(1, "h", "80", "t", "v", True)))]
)
def test_a_damaged_record_is_none(home, text):
    home.server_file.write_text(text)
    with server_lock(home):
        assert running_server(home) is None


def test_ipv6_addresses_get_brackets():
    assert ServerRecord(1, "::1", 80, "t", "v", True).base_url == "http://[::1]:80"


async def test_only_the_right_settings_are_passed_on(home, ended):
    private = Settings(system_prompt="canary-4711", keep_alive=60)
    client = await connect(home, private)
    import psutil

    command = psutil.Process(record_of(home).pid).cmdline()
    assert "canary-4711" not in " ".join(command)
    assert '"keep_alive":60' in " ".join(command).replace(" ", "")
    await client.aclose()


async def test_a_hung_server_is_not_healthy(home, monkeypatch):
    monkeypatch.setattr(discovery, "HEALTH_SECONDS", 0.2)
    writers = []
    server = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert not await discovery._is_healthy(ServerRecord(1, "127.0.0.1", port, "t", __version__, True))
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()
