"""The app over scripted parts: fixed times, no server, no network, a cursor that does not blink."""

import pytest

from app.tui.app import LocalLLMApp
from localllm.conversations import ConversationStore
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from localllm.settings import Settings
from tests.fakes.client import FakeClient, connector
from tests.fakes.jobs import jobs, start
from tests.fakes.models import put_model

__all__ = ["jobs", "put_model", "start"]

NOON = 1_760_000_000.0  # 2025-10-09, 08:53 UTC


class Clock:
    """Seconds that go on by one at every look."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("textual.widgets.TextArea.cursor_blink", False)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def model(home):
    return put_model(home)


@pytest.fixture
def conversations(home, clock):
    store = ConversationStore(home.database, clock=clock)
    yield store
    store.close()


@pytest.fixture
def client():
    return FakeClient()


@pytest.fixture
def make_app(home, conversations, clock):
    """``make_app(client, …)``: an app over the test's home; several of them follow each other as after a restart."""

    def make(*clients, theme="localllm-dark", **settings):
        return LocalLLMApp(
            home,
            Settings(theme=theme, **settings),
            ModelStore(home),
            conversations,
            connector(*(clients or (FakeClient(),))),
            clock=lambda: clock.now,
            jobs=JobStore(home, worker="tests.fakes.job_worker"),
        )

    return make


@pytest.fixture
def settle():
    """Wait until no worker runs and nothing waits to be drawn."""

    async def wait(pilot):
        for _ in range(3):
            await pilot.app.workers.wait_for_complete()
            await pilot.pause()

    return wait


@pytest.fixture
def app(make_app, model, client):
    return make_app(client)
