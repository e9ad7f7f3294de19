"""Using models of a local Ollama store."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from localllm.errors import InvalidModelError, SourceNotFoundError, UsageError
from localllm.models.pull import pull
from localllm.models.sources.ollama import OllamaSource, ollama_directory


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "ollama"
    (root / "blobs").mkdir(parents=True)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    return root


def blob(root: Path, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def manifest(root: Path, layers: list[dict[str, object]], name: str = "library/tinyllm", tag: str = "1b") -> Path:
    path = root / "manifests" / "registry.ollama.ai" / name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return path


def model_layer(root: Path, tiny: Path) -> dict[str, object]:
    return {"mediaType": "application/vnd.ollama.image.model", **blob(root, tiny.read_bytes())}


def test_a_model_is_used_where_it_is(ollama, store, tiny, tiny_sha256):
    licence = {"mediaType": "application/vnd.ollama.image.license", **blob(ollama, b"\nTiny \x1b[1mLicence 1.0\nmore")}
    manifest(ollama, [model_layer(ollama, tiny), licence])
    before = sorted((path, path.lstat().st_mode) for path in ollama.rglob("*"))
    model = pull("ollama:tinyllm:1b", store)
    assert str(model.model_name) == "tinyllm:1b"
    assert model.files[0].sha256 == tiny_sha256
    assert store.is_reference(model)
    assert store.file(model) == (ollama / "blobs" / f"sha256-{tiny_sha256}").resolve()
    assert model.licence == "Tiny ␛[1mLicence 1.0"
    assert [path.name for path in store.directory(model).iterdir()] == ["manifest.json"]
    assert pull("ollama:tinyllm:1b", store) == model

    assert store.remove(model) == 0
    assert store.list() == []
    assert sorted((path, path.lstat().st_mode) for path in ollama.rglob("*")) == before


def test_names_with_a_namespace_and_without_a_tag(ollama, store, tiny):
    manifest(ollama, [model_layer(ollama, tiny)], name="someone/tuned", tag="latest")
    model = pull("ollama:someone/tuned", store)
    assert (str(model.model_name), model.source) == ("tuned:latest", "ollama:someone/tuned:latest")


def test_a_model_that_ollama_removed_is_noticed(ollama, store, tiny):
    manifest(ollama, [model_layer(ollama, tiny)])
    model = pull("ollama:tinyllm:1b", store)
    store.file(model).unlink()
    with pytest.raises(InvalidModelError, match="gone"):
        store.file(model)
    with pytest.raises(SourceNotFoundError, match="lacks the file") as raised:
        pull("ollama:tinyllm:1b", store)
    assert "ollama pull tinyllm:1b" in raised.value.hint


def test_missing_models_and_stores(ollama, store, tiny):
    with pytest.raises(SourceNotFoundError) as raised:
        pull("ollama:none", store)
    assert "installed" in raised.value.hint
    manifest(ollama, [model_layer(ollama, tiny)])
    with pytest.raises(SourceNotFoundError) as raised:
        pull("ollama:none", store)
    assert "tinyllm:1b" in raised.value.hint


@pytest.mark.parametrize(
    "digest", ["sha256:../../secret", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "md5:x", "", None]
)
def test_digests_are_taken_strictly(ollama, store, digest):
    manifest(ollama, [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1}])
    with pytest.raises(InvalidModelError, match="malformed digest"):
        pull("ollama:tinyllm:1b", store)


def test_a_blob_that_leads_out_of_the_store_is_refused(ollama, store, tiny, tiny_sha256):
    layer = model_layer(ollama, tiny)
    path = ollama / "blobs" / f"sha256-{tiny_sha256}"
    path.unlink()
    path.symlink_to(tiny)
    manifest(ollama, [layer])
    with pytest.raises(InvalidModelError, match="outside"):
        pull("ollama:tinyllm:1b", store)


_DAMAGED = {
    "list": "[]",
    "cut": "{",
    "number": '{"layers": 3}',
    "null": "null",
    "empty": '{"layers": []}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", _DAMAGED.values(), ids=_DAMAGED)
def test_damaged_manifests(ollama, store, text):
    manifest(ollama, []).write_text(text)
    with pytest.raises(InvalidModelError):
        pull("ollama:tinyllm:1b", store)


def test_a_cut_blob_is_refused(ollama, store, tiny, tiny_sha256):
    manifest(ollama, [model_layer(ollama, tiny)])
    os.truncate(ollama / "blobs" / f"sha256-{tiny_sha256}", 1000)
    with pytest.raises(InvalidModelError, match="size"):
        pull("ollama:tinyllm:1b", store)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b/c", "x:../y", "", ":", "x:", ".hidden", "a/..:x"])
def test_names_cannot_leave_the_store(tmp_path, name):
    with pytest.raises(UsageError):
        OllamaSource.parse(name, tmp_path)


def test_where_the_store_is(tmp_path):
    assert ollama_directory({"OLLAMA_MODELS": str(tmp_path)}) == tmp_path
    assert ollama_directory({}) == Path.home() / ".ollama" / "models"
