"""Pulling from the hub, against the fake one."""

import hashlib
import json
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from localllm.errors import (
    AccessDeniedError,
    ChecksumError,
    DiskFullError,
    InvalidModelError,
    NetworkError,
    SourceNotFoundError,
    StoreError,
    UsageError,
)
from localllm.models.pull import PullProgress, pull
from localllm.models.sources import hub_files
from localllm.models.sources.hub import HubSource
from localllm.models.store import ModelStore
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.hub import COMMIT, FakeHub, FakeRepository

REPOSITORY = "acme/Tiny-Chat-GGUF"


def gguf(tmp_path: Path, seed: int) -> bytes:
    return write_tiny_gguf(tmp_path / f"seed{seed}.gguf", seed=seed).read_bytes()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return gguf(tmp_path, 0)


@pytest.fixture
def repository(hub: FakeHub, tmp_path: Path, content: bytes) -> FakeRepository:
    """Three quantizations and what else such a repository holds."""
    files = {
        "README.md": b"# Tiny",
        "Tiny-Chat-Q8_0.gguf": gguf(tmp_path, 8),
        "Tiny-Chat-Q4_K_M.gguf": content,
        "sub/Tiny-Chat-IQ2_XS.gguf": gguf(tmp_path, 2),
        "mmproj-Tiny-Chat-F16.gguf": b"GGUF" * 100,
    }
    hub.repositories[REPOSITORY] = FakeRepository(files)
    return hub.repositories[REPOSITORY]


def leftovers(store: ModelStore) -> list[str]:
    return [path.name for path in store.home.partial.rglob("*") if path.is_file()]


def test_the_usual_quantization_is_taken_and_described(hub, repository, store, content):
    manifest = pull(REPOSITORY, store)
    assert str(manifest.model_name) == "tiny-chat:q4_k_m"
    assert (manifest.source, manifest.revision) == (f"hf:{REPOSITORY}", COMMIT)
    assert (manifest.format, manifest.architecture, manifest.licence) == ("gguf", "llama", "apache-2.0")
    assert manifest.files[0].sha256 == hashlib.sha256(content).hexdigest()
    assert manifest.parameters > 0
    assert manifest.n_ctx_train == 256
    file = store.file(manifest)
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert not list(store.home.partial.iterdir())


@pytest.mark.parametrize(
    ("source", "variant"),
    [
        (f"{REPOSITORY}:q8_0", "q8_0"),
        (f"hf:{REPOSITORY}:Tiny-Chat-Q8_0.gguf", "q8_0"),
        (f"{REPOSITORY}:sub/Tiny-Chat-IQ2_XS.gguf@main", "iq2_xs"),
        (f"{REPOSITORY}:IQ2_XS", "iq2_xs"),
    ],
)
def test_a_file_or_quantization_can_be_chosen(hub, repository, store, source, variant):
    assert pull(source, store).variant == variant


def test_a_second_pull_needs_no_network(hub, repository, store):
    first = pull(REPOSITORY, store)
    hub.requests.clear()
    assert pull(f"hf:{REPOSITORY}", store) == first
    assert hub.requests == []


def test_another_way_to_name_the_same_file_downloads_nothing(hub, repository, store):
    first = pull(REPOSITORY, store)
    hub.requests.clear()
    assert pull(f"{REPOSITORY}:q4_k_m", store) == first
    assert hub.downloads() == []


def test_a_taken_name_is_refused_before_downloading(hub, repository, store, tmp_path):
    pull(REPOSITORY, store)
    repository.files["Tiny-Chat-Q4_K_M.gguf"] = gguf(tmp_path, 5)
    hub.requests.clear()
    with pytest.raises(StoreError, match="taken") as raised:
        pull(f"{REPOSITORY}:q4_k_m", store)
    assert "--as" in raised.value.hint
    assert hub.downloads() == []
    assert str(pull(f"{REPOSITORY}:q4_k_m", store, as_name="other").model_name) == "other:q4_k_m"


def test_without_a_usual_one_the_files_are_listed(hub, repository, store):
    del repository.files["Tiny-Chat-Q4_K_M.gguf"]
    with pytest.raises(UsageError, match="2 GGUF models") as raised:
        pull(REPOSITORY, store)
    assert "Tiny-Chat-Q8_0.gguf" in raised.value.hint
    assert "mmproj" not in raised.value.hint
    with pytest.raises(SourceNotFoundError, match="q5_k_m"):
        pull(f"{REPOSITORY}:q5_k_m", store)


def test_progress_grows_to_the_total(hub, repository, store, content):
    seen: list[PullProgress] = []
    pull(REPOSITORY, store, progress=seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == [
        "resolve", "download", "verify", "install",
    ]  # fmt: skip
    downloads = [progress for progress in seen if progress.stage == "download"]
    assert downloads[-1].done == downloads[-1].total == len(content)
    assert [progress.done for progress in downloads] == sorted(progress.done for progress in downloads)


@pytest.mark.parametrize("resets", [False, True])
def test_a_cut_connection_goes_on_where_it_stopped(hub, repository, store, content, resets):
    hub.resets = resets
    hub.cuts["Tiny-Chat-Q4_K_M.gguf"] = [10_000]
    manifest = pull(REPOSITORY, store)
    assert store.file(manifest).read_bytes() == content
    (_, first), (_, second) = hub.downloads()
    assert first == ""
    assert resets or second == "bytes=10000-"  # a reset may throw away what the system had not handed over yet


def test_a_server_without_ranges_sends_all_again(hub, repository, store, content):
    hub.cuts["Tiny-Chat-Q4_K_M.gguf"] = [10_000]
    hub.ignore_ranges = True
    assert store.file(pull(REPOSITORY, store)).read_bytes() == content


def test_the_next_pull_goes_on_with_what_a_broken_one_left(hub, repository, store, content, monkeypatch):
    def stop(progress: PullProgress) -> None:
        if progress.stage == "download":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REPOSITORY, store, progress=stop)
    assert store.list() == []
    (part,) = leftovers(store)
    partial = next(store.home.partial.rglob(part))
    partial.write_bytes(content[:12_345])  # as after a longer while

    hub.requests.clear()
    assert store.file(pull(REPOSITORY, store)).read_bytes() == content
    assert [ranged for _, ranged in hub.downloads()] == ["bytes=12345-"]
    assert leftovers(store) == []


def test_a_partial_file_is_never_continued_with_another_version(hub, repository, store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pull(REPOSITORY, store, progress=lambda progress: _interrupt(progress, "download"))
    newer = gguf(tmp_path, 7)
    repository.files["Tiny-Chat-Q4_K_M.gguf"] = newer
    repository.commit = "f" * 40
    manifest = pull(REPOSITORY, store)
    assert store.file(manifest).read_bytes() == newer
    assert sorted(path.name for path in store.directory(manifest).iterdir()) == [
        "Tiny-Chat-Q4_K_M.gguf",
        "manifest.json",
    ]


def _interrupt(progress: PullProgress, stage: str) -> None:
    if progress.stage == stage:
        raise KeyboardInterrupt


def test_a_wrong_checksum_leaves_nothing(hub, repository, store):
    hub.corrupt.add("Tiny-Chat-Q4_K_M.gguf")
    with pytest.raises(ChecksumError, match="not what the hub promised"):
        pull(REPOSITORY, store)
    assert store.list() == []
    assert not list(store.home.partial.iterdir())


def test_a_file_that_is_no_model_leaves_nothing(hub, store):
    hub.repositories["acme/Odd-GGUF"] = FakeRepository({"odd-Q4_K_M.gguf": b"<html>" * 100})
    with pytest.raises(InvalidModelError):
        pull("acme/Odd-GGUF", store)
    assert not list(store.home.partial.iterdir())


def test_a_gated_repository(hub, repository, store, monkeypatch):
    repository.gated = True
    with pytest.raises(AccessDeniedError, match="gated") as raised:
        pull(REPOSITORY, store)
    assert "hf auth login" in raised.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert pull(REPOSITORY, store).variant == "q4_k_m"


@pytest.mark.parametrize(("status", "kind"), [(401, AccessDeniedError), (403, AccessDeniedError), (429, NetworkError),
                                              (503, NetworkError), (418, StoreError)])  # fmt: skip
def test_refusals(hub, repository, store, status, kind):
    hub.status = status
    with pytest.raises(kind) as raised:
        pull(REPOSITORY, store)
    assert raised.value.hint


def test_missing_things(hub, repository, store):
    with pytest.raises(SourceNotFoundError, match="no repository acme/none"):
        pull("acme/none", store)
    with pytest.raises(SourceNotFoundError, match="no revision 'v9'"):
        pull(f"{REPOSITORY}@v9", store)
    hub.repositories["acme/pictures"] = FakeRepository({"cat.png": b"x"})
    with pytest.raises(InvalidModelError, match="no model"):
        pull("acme/pictures", store)


def test_no_network(hub, store, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="cannot be reached"):
        pull(REPOSITORY, store)
    assert not list(store.home.partial.iterdir())


def test_the_hubs_own_cache_is_used_also_offline(hub, repository, store, content, monkeypatch):
    hf_hub_download(REPOSITORY, "Tiny-Chat-Q4_K_M.gguf", endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    manifest = pull(REPOSITORY, store)
    assert store.file(manifest).read_bytes() == content
    assert manifest.revision == COMMIT
    assert hub.requests == []
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"):
        pull("acme/other", store)


def test_a_cached_file_is_linked_and_not_fetched_again(hub, repository, store, content):
    path = hf_hub_download(REPOSITORY, "Tiny-Chat-Q4_K_M.gguf", endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    blob = Path(path).resolve()
    mode = blob.stat().st_mode
    hub.requests.clear()
    manifest = pull(REPOSITORY, store)
    assert hub.downloads() == []
    assert store.file(manifest).samefile(blob)
    assert not store.file(manifest).is_symlink()
    assert blob.stat().st_mode == mode


def test_a_damaged_cache_is_not_trusted(hub, repository, store, content):
    path = hf_hub_download(REPOSITORY, "Tiny-Chat-Q4_K_M.gguf", endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    Path(path).write_bytes(bytes(len(content)))
    assert store.file(pull(REPOSITORY, store)).read_bytes() == content


def test_a_full_disk_is_noticed_before_and_during(hub, repository, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(DiskFullError, match="needed"):
            pull(REPOSITORY, store)
    assert hub.downloads() == []

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_files, "_stream", full)
    with pytest.raises(DiskFullError, match="disk is full"):
        pull(REPOSITORY, store)
    assert not list(store.home.partial.iterdir())


def test_a_split_model_is_fetched_whole(hub, store, tmp_path):
    parts = {}
    for number in range(2):
        extra = {"split.count": 2, "split.no": number}
        part = write_tiny_gguf(tmp_path / "part.gguf", extra=extra, seed=number)
        parts[f"big-Q4_K_M-0000{number + 1}-of-00002.gguf"] = part.read_bytes()
    hub.repositories["acme/Big-GGUF"] = FakeRepository(parts)
    manifest = pull("acme/Big-GGUF", store)
    assert str(manifest.model_name) == "big:q4_k_m"
    assert [file.path for file in manifest.files] == list(parts)
    del parts["big-Q4_K_M-00002-of-00002.gguf"]
    hub.repositories["acme/Half-GGUF"] = FakeRepository(parts)
    with pytest.raises(InvalidModelError, match="part 2 is missing"):
        pull("acme/Half-GGUF", store)


def safetensors(dtype: str = "BF16", count: int = 512) -> bytes:
    size = count * {"BF16": 2, "U32": 4}[dtype]
    entry = {"w.weight": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    ("config", "weights", "form", "variant", "parameters"),
    [
        ({}, safetensors(), "hf", "bf16", 512),
        ({"quantization": {"bits": 4, "group_size": 64}}, safetensors("U32"), "mlx", "mlx-4bit", 4096),
    ],
)
def test_a_repository_of_safetensors(hub, store, config, weights, form, variant, parameters):
    config = {"model_type": "llama", "max_position_embeddings": 2048, **config}
    files = {
        "model.safetensors": weights,
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "modeling.py": b"import os",
        "onnx/model.onnx": b"x",
        "pytorch_model.bin": b"pickle",
    }
    hub.repositories["acme/Tiny"] = FakeRepository(files)
    manifest = pull("acme/Tiny", store)
    assert (manifest.format, str(manifest.model_name), manifest.parameters) == (form, f"tiny:{variant}", parameters)
    assert [file.path for file in manifest.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert manifest.n_ctx_train == 2048


def test_a_small_file_is_checked_by_its_git_name(hub, store):
    hub.repositories["acme/Tiny"] = FakeRepository(
        {"config.json": b'{"model_type": "x"}', "model.safetensors": safetensors()}
    )
    hub.corrupt.add("config.json")
    with pytest.raises(ChecksumError, match=r"config\.json"):
        pull("acme/Tiny", store)


def test_two_pulls_at_once_fetch_once(hub, repository, store):
    hub.gate.clear()
    waiting = threading.Event()
    results = []

    def notice(progress: PullProgress) -> None:
        if progress.stage == "wait":
            waiting.set()
            hub.gate.set()

    threads = [
        threading.Thread(target=lambda: results.append(pull(REPOSITORY, store, progress=notice))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert waiting.is_set()
    assert results[0] == results[1]
    assert len(hub.downloads()) == 1


def test_a_hostile_listing_cannot_choose_where_files_go(hub, store, content):
    for path in ("../../../evil-Q4_K_M.gguf", "..\\evil-Q4_K_M.gguf"):
        hub.repositories["acme/Evil-GGUF"] = FakeRepository({path: content})
        with pytest.raises(InvalidModelError, match="no model"):
            pull("acme/Evil-GGUF", store)
    file = hub_files.HubFile("x.gguf", 5, "../../evil", "", None)
    assert "/" not in hub_files._content_key("commit", file)
    hub.repositories["acme/Odd-GGUF"] = FakeRepository({"a/\x1b[31m-Q4_K_M.gguf": content})
    with pytest.raises(InvalidModelError, match="unsafe name"):
        pull("acme/Odd-GGUF", store)


@pytest.mark.parametrize("text", ["a/b/c", "../b", "a/b:", "a/b@", "a/../b", "a/b:../x", "-a/b", "a/b@-x", "a b/c"])
def test_malformed_sources(text):
    with pytest.raises(UsageError):
        HubSource.parse(text)
