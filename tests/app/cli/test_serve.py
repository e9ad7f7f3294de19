"""``localllm serve`` as a process of its own. No model is needed for it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from localllm.settings import Settings
from serve.client import ServeClient
from serve.discovery import connect, running_server
from tests.fakes.engine import add_model


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "serve", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@contextmanager
def serving(*arguments, **environment):
    """A server that is ready, and what it reported as JSON."""
    with start("--port", "0", "--json", *arguments, **environment) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)
        finally:
            process.kill()


def fail(*arguments, **environment):
    """Run a server that cannot start; its exit code and message."""
    with start(*arguments, **environment) as process:
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert out == ""
    assert "Traceback" not in err
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_stops_gracefully(home, number):
    add_model(home, "tiny")
    with serving() as (process, report):
        record = running_server(home)
        assert record is not None
        assert not record.managed
        assert report == {"url": f"{record.base_url}/v1", "pid": record.pid, "models": ["tiny:f16"], "loaded": []}
        process.send_signal(number)
        _, err = process.communicate(timeout=15)
        assert process.returncode == 0
    assert f"Serving at {record.base_url}/v1" in err
    assert f"curl {record.base_url}/v1/chat/completions" in err
    assert '"model": "tiny:f16"' in err
    assert "Stopped." in err
    assert not home.server_file.exists()


async def test_it_takes_the_place_of_the_apps_server(home):
    client = await connect(home, Settings(keep_alive=60))
    old = running_server(home)
    with serving() as (process, report):
        record = running_server(home)
        assert record.pid == report["pid"] != old.pid
        # The app's client follows.
        assert await client.models() == []
        assert client.address == record.address
        process.terminate()
        _, err = await asyncio.to_thread(process.communicate, timeout=15)
    await client.aclose()
    assert "taking its place" in err


def test_a_second_one_names_the_first(home):
    with serving() as (_, report):
        code, err = fail("--port", "0")
    assert code == 1
    assert report["url"].removesuffix("/v1") in err


def test_a_port_in_use_is_named(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, err = fail("--port", str(port))
    assert code == 1
    assert f"Port {port} on 127.0.0.1 is in use" in err
    assert "--port 0" in err


def test_others_are_let_in_only_with_a_key(home):
    code, err = fail("--port", "0", "--host", "0.0.0.0")
    assert code == 2
    assert "LOCALLLM_API_KEY" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing"], 1, "no model 'nothing'"),
        (["--api-key", ""], 2, "--api-key is empty"),
        (["--port", "99999"], 2, "port"),
        (["--ctx", "-5"], 2, "ctx"),
        (["--port", "0", "--allow-host", "http://x"], 2, "http://x"),
        (["--port", "0", "--allow-host", "x:80"], 2, "x:80"),
        (["--port", "0", "--host", "a b"], 2, "'a b'"),
    ],
)
def test_mistakes(home, arguments, code, words):
    got, err = fail(*arguments)
    assert (got, words in err) == (code, True), err


async def test_a_key_from_the_environment(home):
    with serving("--allow-host", "my-mac.local", LOCALLLM_API_KEY="secret") as (_, report):
        for key, right in (("secret", True), ("", False)):
            client = ServeClient(report["url"].removesuffix("/v1"), key)
            health = await client.health()
            await client.aclose()
            assert ("version" in health) is right
