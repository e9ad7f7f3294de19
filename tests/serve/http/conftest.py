"""A whole server on a free port, with scripted engines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anthropic
import httpx2
import ollama
import openai
import pytest

from localllm.paths import Home
from localllm.settings import Settings
from serve.client import ServeClient
from serve.http.server import Running, ServerOptions, run_server
from tests.fakes.engine import EngineStarter, Script, ScriptedEngine, add_model


@dataclass
class Served:
    """A server under test, in the test's own event loop."""

    base_url: str
    token: str
    starter: EngineStarter
    running: Running
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def engine(self) -> ScriptedEngine:
        return self.starter.started[-1]

    def openai(self, **options) -> openai.AsyncOpenAI:
        given = {"api_key": self.token, "base_url": f"{self.base_url}/v1", "max_retries": 0, **options}
        return openai.AsyncOpenAI(**given)

    def anthropic(self, **options) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            **{"api_key": self.token, "base_url": self.base_url, "max_retries": 0, **options}
        )

    def ollama(self, **headers: str) -> ollama.AsyncClient:
        client = ollama.AsyncClient(self.base_url, headers={"authorization": f"Bearer {self.token}", **headers})
        self.closing.push_async_callback(client.close)
        return client

    def http(self, **headers: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=self.base_url, headers={"authorization": f"Bearer {self.token}", **headers}, trust_env=False
        )

    def client(self) -> ServeClient:
        return ServeClient(self.base_url, self.token)


@asynccontextmanager
async def serving(
    home: Home, *scripts: Script, options: ServerOptions | None = None, settings: Settings | None = None
) -> AsyncIterator[Served]:
    starter = EngineStarter(*scripts)
    ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()

    async def on_ready(running: Running) -> None:
        ready.set_result(running)

    server = asyncio.create_task(
        run_server(home, settings or Settings(), options or ServerOptions(), starter, on_ready=on_ready)
    )
    await asyncio.wait({server, ready}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await server
    running = ready.result()
    served = Served(running.record.base_url, running.record.token, starter, running)
    try:
        yield served
    finally:
        await served.closing.aclose()
        client = served.client()
        if not server.done():
            await client.shutdown()
        await client.aclose()
        await asyncio.wait_for(server, 15)


@pytest.fixture
async def serve(home: Home) -> AsyncIterator[Callable[..., object]]:
    """Starts a server that has the model ``tiny``: ``await serve(Script(), …)``."""
    async with AsyncExitStack() as stack:

        async def start(*scripts: Script, **options: object) -> Served:
            add_model(home, "tiny")
            return await stack.enter_async_context(serving(home, *scripts, **options))

        yield start


async def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.01)


@pytest.fixture(name="eventually")
def _eventually():
    return eventually
