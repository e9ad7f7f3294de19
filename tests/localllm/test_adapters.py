"""The adapter store: both forms, names, modes, and everything that it refuses."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from localllm.adapters import AdapterStore, is_adapter_source, split_name
from localllm.errors import InvalidModelError, LocalLLMError, ModelNotFoundError, StoreError, UsageError
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from tests.fakes.gguf_files import ARCHITECTURE, pair, raw_gguf, text, write_tiny_gguf, write_tiny_lora


@pytest.fixture
def base(tmp_path):
    return write_tiny_gguf(tmp_path / "tiny.F16.gguf")


@pytest.fixture
def lora(tmp_path, base):
    return write_tiny_lora(tmp_path / "Pirate Talk.gguf", base, rank=4, alpha=8.0)


def mlx_adapter(directory, names=("model.layers.0.self_attn.q_proj.lora_a",), **config):
    directory.mkdir()
    settings = {"model": "org/Tiny-GGUF", "fine_tune_type": "lora", "num_layers": 2}
    settings |= {"lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}} | config
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file({name: np.ones((4, 4), np.float32) for name in names}, directory / "adapters.safetensors")
    return directory


@pytest.fixture
def store(home):
    return AdapterStore(home)


def test_a_gguf_adapter_is_copied_with_all_that_is_known(store, home, base, lora):
    pull(str(base), ModelStore(home))
    adapter, new = store.install(lora)
    assert new
    assert (adapter.name, adapter.base, adapter.architecture) == ("pirate-talk", "tiny", "llama")
    assert (adapter.rank, adapter.alpha, adapter.forms) == (4, 8.0, ("gguf",))
    assert store.list() == [adapter] == [store.resolve(" +Pirate-Talk ")]
    path = store.path(adapter, "gguf")
    assert path.read_bytes() == lora.read_bytes()
    lora.write_bytes(b"changed")
    assert store.path(adapter, "gguf").stat().st_size == adapter.size
    modes = [entry.stat().st_mode & 0o777 for entry in (path.parent, *sorted(path.parent.iterdir()))]
    assert modes == [0o700, 0o600, 0o600]
    assert store.made_for(ModelStore(home).resolve("tiny")) == [adapter]
    assert list(home.partial.iterdir()) == []


def test_an_mlx_adapter_is_taken_from_its_directory(store, tmp_path):
    adapter, _ = store.install(mlx_adapter(tmp_path / "out"), name="mine")
    assert (adapter.name, adapter.base, adapter.rank, adapter.alpha) == ("mine", "tiny", 4, 8.0)
    assert adapter.forms == ("mlx",)
    assert store.path(adapter, "mlx") == store.directory(adapter)
    with pytest.raises(InvalidModelError, match="GGUF file"):
        store.path(adapter, "gguf")


def test_a_directory_may_hold_both_forms(store, tmp_path, lora):
    shutil.copy(lora, mlx_adapter(tmp_path / "both") / "adapter.gguf")
    (tmp_path / "both" / "0000100_adapters.safetensors").write_bytes(b"a checkpoint, which stays behind")
    adapter, _ = store.install(tmp_path / "both", base="tiny")
    assert adapter.forms == ("gguf", "mlx")
    assert adapter.architecture == "llama"
    assert len(list(store.directory(adapter).iterdir())) == 4


def test_the_same_again_is_here_already_and_another_of_the_name_is_refused(store, tmp_path, base, lora):
    first, _ = store.install(lora)
    assert store.install(lora) == (first, False)
    other = write_tiny_lora(tmp_path / "other.gguf", base, seed=5)
    with pytest.raises(StoreError, match="taken") as caught:
        store.install(other, name="pirate-talk")
    assert "--as" in caught.value.hint
    assert store.resolve("pirate-talk") == first
    assert list(store.home.partial.iterdir()) == []


def test_removing(store, lora):
    adapter, _ = store.install(lora)
    assert store.remove(adapter) == adapter.size
    assert store.list() == []
    with pytest.raises(ModelNotFoundError):
        store.remove(adapter)
    with pytest.raises(ModelNotFoundError, match="no adapter 'pirate-talk'"):
        store.resolve("pirate-talk")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "a:b", "a+b", "", "+", "a\0b", "x" * 200])
def test_odd_names_never_become_paths(store, lora, name):
    with pytest.raises(UsageError):
        store.resolve(name)
    if name:
        with pytest.raises(UsageError):
            store.install(lora, name=name)


def test_a_close_name_is_offered(store, lora):
    store.install(lora, name="pirate")
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve("pirat")
    assert "Did you mean pirate?" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"fine_tune_type": "full"}, ["layer.weight"]),
        ({"lora_parameters": None}, ["a.lora_a"]),
        ({"lora_parameters": {"scale": 1.0}}, ["a.lora_a"]),
        ({"lora_parameters": {"rank": True, "scale": 1.0}}, ["a.lora_a"]),
        ({}, ["layer.weight"]),
        ({}, []),
    ],
)
def test_what_mlx_would_not_load_is_refused(store, tmp_path, config, names):
    with pytest.raises(InvalidModelError):
        store.install(mlx_adapter(tmp_path / "wrong", names, **config))
    assert store.list() == []
    assert list(store.home.partial.iterdir()) == []


def test_damaged_files_are_refused(store, tmp_path, lora):
    whole = lora.read_bytes()
    lora.write_bytes(whole[:-100])
    with pytest.raises(InvalidModelError):
        store.install(lora)
    directory = mlx_adapter(tmp_path / "mlx")
    (directory / "adapter_config.json").write_text("{")
    with pytest.raises(InvalidModelError, match=r"adapter_config\.json is not valid JSON"):
        store.install(directory)
    (directory / "adapters.safetensors").unlink()
    with pytest.raises(InvalidModelError, match="holds no adapter"):
        store.install(directory)
    with pytest.raises(StoreError, match="no file"):
        store.install(tmp_path / "missing")


@pytest.mark.parametrize(
    "pairs",
    [
        [pair("general.type", 8, text("model"))],
        [pair("general.type", 8, text("adapter")), pair("adapter.type", 8, text("ia3"))],
        [pair("general.type", 8, text("adapter")), pair("adapter.type", 8, text("lora"))],
        # llama.cpp asserts the type of this number, and would end its process.
        [pair("adapter.lora.alpha", 12, bytes(8))],
    ],
)
def test_a_gguf_file_that_is_no_lora_is_refused(store, tmp_path, pairs):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_gguf([ARCHITECTURE, *pairs]))
    with pytest.raises(InvalidModelError):
        store.install(path)


def test_damaged_adapters_are_not_listed(store, home, lora):
    adapter, _ = store.install(lora)
    (store.directory(adapter) / "manifest.json").write_text("[]")
    shutil.copytree(store.directory(adapter), home.adapters / "renamed")
    assert store.list() == []
    assert store.install(lora, name="whole")[1]


def test_a_missing_file_is_an_error_that_says_so(store, lora):
    adapter, _ = store.install(lora)
    store.path(adapter, "gguf").unlink()
    with pytest.raises(InvalidModelError, match="lost"):
        store.path(adapter, "gguf")


def test_what_is_an_adapter_is_told_from_models(tmp_path, base, lora):
    assert is_adapter_source(lora)
    assert is_adapter_source(mlx_adapter(tmp_path / "mlx"))
    for path in (base, tmp_path, tmp_path / "missing"):
        assert not is_adapter_source(path)


def test_names_with_adapters():
    assert split_name("a:b") == ("a:b", ())
    assert split_name("a:b+c+d") == ("a:b", ("c", "d"))


def test_every_error_is_one_that_a_person_can_read(store, base):
    with pytest.raises(LocalLLMError, match="a model, no adapter"):
        store.install(base)
