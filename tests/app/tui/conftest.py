"""The app over scripted parts: fixed times, no server, no network, a cursor that does not blink."""

import pytest

from app.tui.app import LocalLLMApp
from localllm.conversations import ConversationStore
from localllm.models.manifest import Manifest, ModelFile, write_manifest
from localllm.models.store import ModelStore
from localllm.settings import Settings
from tests.fakes.client import FakeClient, connector

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


def put_model(home, name="smollm2-135m", variant="q4_1", size=98_362_432, **changes):
    directory = home.models / name / variant
    directory.mkdir(parents=True)
    (directory / "model.gguf").write_bytes(b"GGUF")
    manifest = Manifest(
        name=name,
        variant=variant,
        source="test",
        format="gguf",
        files=(ModelFile("model.gguf", size, "0" * 64),),
        quantization=variant.upper(),
        **changes,
    )
    write_manifest(directory, manifest)
    return manifest


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
