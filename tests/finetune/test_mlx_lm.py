"""Adapters go both ways between this program and plain mlx-lm, and predict the same on either side."""

import json
import os
import re
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load as mlx_lm_load

from app.cli.main import main
from finetune.base import load_base
from finetune.fuse import fuse
from finetune.lora import add_adapters, load_weights
from finetune.recipe import read_recipe
from localllm.adapters import AdapterStore
from localllm.models.store import ModelStore
from serve.engine.mlx_weights import Weights
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT

TOKENS = mx.array([np.random.default_rng(0).integers(0, 300, 40).tolist()])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LOCALLLM_GPU_LAYERS", "0")
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture
def rows(tmp_path):
    """A directory as mlx-lm wants it."""
    directory = tmp_path / "rows"
    directory.mkdir()
    for name, numbers in (("train", range(20)), ("valid", range(20, 26))):
        lines = [json.dumps({"prompt": f"Say {i}. ", "completion": f"It is {i}."}) for i in numbers]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def stored(home, name):
    store = ModelStore(home)
    return store.file(store.resolve(name)).parent


def installed(home, name):
    store = AdapterStore(home)
    return store.directory(store.resolve(name))


def logits(model):
    model.eval()
    return np.array(model(TOKENS).astype(mx.float32))


def assert_changed(ours, base):
    """What the adapter does is far more than rounding."""
    assert np.abs(ours - logits(mlx_lm_load(str(base))[0])).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("llama", "lora"), ("llama", "dora"), ("olmoe", "lora")])
def test_one_made_here_loads_in_plain_mlx_lm(home, tmp_path, rows, kind, method):
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", kind)), "--as", "tiny:hf"]) == 0
    words = ["--steps", "6", "--learning-rate", "0.01", "--rank", "4", "--method", method, "--as", "mine"]
    assert main(["finetune", "tiny:hf", "--data", str(rows), *words]) == 0
    directory = installed(home, "mine")
    plain, _ = mlx_lm_load(str(stored(home, "tiny")), adapter_path=str(directory))

    base = load_base(stored(home, "tiny"))
    add_adapters(base.model, read_recipe(directory / "recipe.yaml"))
    load_weights(directory, base.model)
    ours = logits(base.model)
    assert np.array_equal(ours, logits(plain))
    assert np.array_equal(ours, logits(Weights(stored(home, "tiny"), directory).model))
    assert_changed(ours, stored(home, "tiny"))


@pytest.mark.slow
def test_one_made_here_on_a_packed_base_loads_on_it_in_plain_mlx_lm(home, tmp_path, rows):
    """Trained on the weights as they are unpacked, used on them as they are packed."""
    assert (
        main(["pull", str(write_hf_model(tmp_path / "tiny", "llama", intermediate_size=128)), "--as", "tiny:hf"]) == 0
    )
    assert main(["quantize", "tiny:hf", "--to", "mlx-4bit"]) == 0
    base = stored(home, "tiny:mlx-4bit")
    assert "quantization" in json.loads((base / "config.json").read_text())
    words = ["--steps", "6", "--learning-rate", "0.01", "--rank", "4", "--as", "mine"]
    assert main(["finetune", "tiny:mlx-4bit", "--data", str(rows), *words]) == 0
    directory = installed(home, "mine")
    plain, _ = mlx_lm_load(str(base), adapter_path=str(directory))
    trained = load_base(base)
    add_adapters(trained.model, read_recipe(directory / "recipe.yaml"))
    load_weights(directory, trained.model)
    ours = logits(trained.model)
    assert np.abs(ours - logits(plain)).max() < 1e-4 * np.abs(ours).max()
    assert_changed(ours, base)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_one_made_by_mlx_lm_loads_here(home, tmp_path, rows, capsys, method):
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    theirs = tmp_path / "theirs"
    subprocess.run(
        [
            *(sys.executable, "-m", "mlx_lm", "lora", "--model", str(stored(home, "tiny")), "--train"),
            *("--data", str(rows), "--adapter-path", str(theirs), "--iters", "4", "--batch-size", "2"),
            *("--num-layers", "2", "--learning-rate", "0.02", "--fine-tune-type", method),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert main(["pull", str(theirs), "--as", "theirs"]) == 0
    directory = installed(home, "theirs")
    expected = logits(mlx_lm_load(str(stored(home, "tiny")), adapter_path=str(theirs))[0])
    assert_changed(expected, stored(home, "tiny"))
    assert np.array_equal(logits(Weights(stored(home, "tiny"), directory).model), expected)

    fuse(stored(home, "tiny"), directory, tmp_path / "fused", dtype="f32")
    assert np.abs(logits(mlx_lm_load(str(tmp_path / "fused"))[0]) - expected).max() < 1e-4
    # The gate has run it in MLX, and compares what llama.cpp makes of it.
    capsys.readouterr()
    assert main(["models", "export", "tiny:hf+theirs", "--to", "gguf:f32"]) == 0
    assert re.search(r"^gguf:f32 .* ok$", capsys.readouterr().err, re.MULTILINE)
