"""Taking in files and directories of this computer."""

import errno
import json
from pathlib import Path

import pytest

from localllm.errors import DiskFullError, InvalidModelError, SourceNotFoundError, StoreError, UsageError
from localllm.models.pull import pull
from localllm.models.sources.parse import parse_source
from tests.fakes.gguf_files import write_tiny_gguf


def test_a_file_is_linked_and_the_original_is_untouched(store, tiny, tiny_sha256):
    tiny.chmod(0o644)
    manifest = pull(str(tiny), store)
    assert str(manifest.model_name) == "tiny-chat:f16"
    assert manifest.source == str(tiny)
    assert manifest.files[0].sha256 == tiny_sha256
    assert store.file(manifest).samefile(tiny)
    assert tiny.stat().st_mode & 0o777 == 0o644
    assert store.remove(manifest) == 0  # nothing is freed while the original is there
    assert tiny.exists()


def test_across_disks_it_is_copied(store, tiny, monkeypatch):
    def no_link(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    tiny.chmod(0o644)
    manifest = pull(str(tiny), store)
    file = store.file(manifest)
    assert not file.samefile(tiny)
    assert file.read_bytes() == tiny.read_bytes()
    assert (file.stat().st_mode & 0o777, tiny.stat().st_mode & 0o777) == (0o600, 0o644)
    assert store.remove(manifest) == tiny.stat().st_size


def test_a_disk_that_fills_during_the_copy_leaves_nothing(store, tiny, monkeypatch):
    def no_link(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    monkeypatch.setattr("localllm.models.transfer.os.fsync", full)
    with pytest.raises(DiskFullError):
        pull(str(tiny), store)
    assert store.list() == []
    assert not list(store.home.partial.iterdir())


def test_the_same_file_twice_is_one_model_and_another_is_refused(store, tiny, tmp_path):
    first = pull(str(tiny), store)
    assert pull(str(tiny), store) == first
    tiny.unlink()
    write_tiny_gguf(tiny, seed=3)
    with pytest.raises(StoreError, match="taken"):
        pull(str(tiny), store)
    assert str(pull(str(tiny), store, as_name="Mine:v2").model_name) == "mine:v2"
    assert len(store.list()) == 2


def test_a_symbolic_link_is_followed(store, tiny, tmp_path):
    link = tmp_path / "Linked.gguf"
    link.symlink_to(tiny)
    file = store.file(pull(str(link), store))
    assert file.samefile(tiny)
    assert not file.is_symlink()


def test_all_parts_of_a_split_file_are_taken(store, tmp_path):
    for part in (1, 2):
        extra = {"split.count": 2, "split.no": part - 1}
        write_tiny_gguf(tmp_path / f"big-f16-0000{part}-of-00002.gguf", extra=extra)
    manifest = pull(str(tmp_path / "big-f16-00002-of-00002.gguf"), store)
    assert [file.path for file in manifest.files] == ["big-f16-00001-of-00002.gguf", "big-f16-00002-of-00002.gguf"]
    (tmp_path / "big-f16-00001-of-00002.gguf").unlink()
    with pytest.raises(InvalidModelError, match="part 1 is missing"):
        pull(str(tmp_path / "big-f16-00002-of-00002.gguf"), store)


def directory_model(directory: Path, config: object = None) -> Path:
    directory.mkdir()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    (directory / "run.py").write_text("")
    (directory / ".git").mkdir()
    return directory


def test_a_directory(store, tmp_path):
    manifest = pull(str(directory_model(tmp_path / "My Model")), store)
    assert (str(manifest.model_name), manifest.format, manifest.parameters) == ("my-model:bf16", "hf", 6)
    assert [file.path for file in manifest.files] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", (99).to_bytes(8, "little") + b"{}",
     b'\x40\0\0\0\0\0\0\0{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,9999999]}}      ',
     b'\x40\0\0\0\0\0\0\0{"w":{"dtype":"F32","shape":[-9],"data_offsets":[0,0]}}           '],
)  # fmt: skip
def test_damaged_safetensors_are_refused(store, tmp_path, header):
    directory = directory_model(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(header)
    with pytest.raises(InvalidModelError, match="damaged"):
        pull(str(directory), store)
    assert store.list() == []


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 100_000], ids=["list", "cut", "null", "deep"])
def test_a_damaged_config_is_refused(store, tmp_path, text):
    directory = directory_model(tmp_path / "m")
    (directory / "config.json").write_text(text)
    with pytest.raises(InvalidModelError, match=r"config\.json"):
        pull(str(directory), store)


def test_what_is_no_model(store, tmp_path, tiny):
    with pytest.raises(SourceNotFoundError, match="no file or directory"):
        pull(str(tmp_path / "none.gguf"), store)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidModelError, match="no model"):
        pull(str(tmp_path / "empty"), store)
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(InvalidModelError, match="not a GGUF file"):
        pull(str(tmp_path / "x.bin"), store)
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:500])
    with pytest.raises(InvalidModelError):
        pull(str(tmp_path / "cut.gguf"), store)
    with pytest.raises(InvalidModelError, match="several models"):
        pull(str(tmp_path), store)
    assert not list(store.home.partial.iterdir())


def test_a_name_that_the_store_cannot_take(store, tmp_path):
    odd = write_tiny_gguf(tmp_path / "\u202eodd.gguf")
    with pytest.raises(StoreError, match="Rename it"):
        pull(str(odd), store)


@pytest.mark.parametrize("text", ["", "llama3", "https://hub.example/org/repo"])
def test_what_is_no_source(text):
    with pytest.raises(UsageError) as raised:
        parse_source(text)
    assert raised.value.hint


def test_a_path_that_is_here_wins_over_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "repo").mkdir(parents=True)
    assert parse_source("org/repo").text == str(tmp_path / "org" / "repo")
    assert parse_source("hf:org/repo").text == "hf:org/repo"
    assert parse_source("org/other").text == "hf:org/other"


@pytest.mark.parametrize("text", ["a" * 5000, "é" * 300 + "/x"])
def test_a_name_that_no_disk_takes_is_no_path(text):
    with pytest.raises(UsageError):
        parse_source(text)


def test_a_path_that_no_disk_takes_is_an_error_for_a_person(store):
    with pytest.raises(StoreError, match="cannot be read: File name too long"):
        pull("/" + "a" * 5000, store)


def test_other_weights_under_the_same_settings_are_another_model(store, tmp_path):
    directory = directory_model(tmp_path / "mine")
    first = pull(str(directory), store)
    assert pull(str(directory), store) == first
    weights = directory / "model.safetensors"
    raw = weights.read_bytes()
    weights.unlink()  # its other hard link is the model in the store
    weights.write_bytes(raw[:-1] + b"\1")
    with pytest.raises(StoreError, match="is taken by another model"):
        pull(str(directory), store)
