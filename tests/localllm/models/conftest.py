"""What the store's tests share: a store, a tiny model, a fake hub."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.models.store import ModelStore
from localllm.paths import Home
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.hub import FakeHub


@pytest.fixture
def store(home: Home) -> ModelStore:
    return ModelStore(home)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny GGUF file whose name names its quantization."""
    return write_tiny_gguf(tmp_path / "Tiny-Chat.F16.gguf")


@pytest.fixture
def tiny_sha256(tiny: Path) -> str:
    return hashlib.sha256(tiny.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake hub that huggingface_hub talks to in this process.

    It reads its environment when it is imported, so its constants are set; the commands' tests, which run in
    processes of their own, set HF_ENDPOINT.
    """
    from huggingface_hub import close_session, constants

    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield fake
        close_session()
