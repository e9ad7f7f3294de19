"""A server with a scripted engine, in a thread of its own, for clients that ask and wait."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from localllm.paths import Home
from localllm.settings import Settings
from serve.discovery import ServerRecord
from serve.http.server import Running, ServerOptions, run_server
from tests.fakes.engine import EngineStarter, Script, add_model

MODEL = "tiny"


@contextmanager
def serving(home: Home) -> Iterator[ServerRecord]:
    """A server with a scripted engine, in a thread: schemathesis asks and waits."""
    add_model(home, MODEL)
    ready = threading.Event()
    running: list[Running] = []
    failures: list[BaseException] = []

    async def on_ready(server: Running) -> None:
        running.append(server)
        ready.set()

    def serve() -> None:
        try:
            starter = EngineStarter(Script(texts=("Hello", " <wor", "ld>.")))
            asyncio.run(run_server(home, Settings(), ServerOptions(), starter, on_ready=on_ready))
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread of the test
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    try:
        assert ready.wait(30)
        assert not failures, failures
        yield running[0].record
    finally:
        if running and thread.is_alive():
            record = running[0].record
            requests.post(f"{record.base_url}/internal/shutdown", json={}, headers=credentials(record), timeout=10)
        thread.join(30)
    assert not thread.is_alive()
    assert not failures, failures


def credentials(record: ServerRecord) -> dict[str, str]:
    return {"authorization": f"Bearer {record.token}"}
