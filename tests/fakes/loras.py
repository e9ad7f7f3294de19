"""Random LoRA adapters for the tiny models of :mod:`tests.fakes.hf_models`, as mlx-lm's trainer writes them."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np


def write_lora(
    directory: Path, model: Path, keys: tuple[str, ...], *, rank: int = 4, scale: float = 4.0, n_layers: int = 2
) -> Path:
    """Put adapters on ``keys`` of the last blocks of the model with mlx-lm's own code, make all random, save them."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    loaded, _ = load_model(model)
    loaded.freeze()
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(keys)}
    linear_to_lora_layers(loaded, n_layers, parameters)
    random = np.random.default_rng(3)
    weights = {
        name: mx.array(random.normal(0, 0.3, value.shape).astype(np.float32))
        for name, value in tree_flatten(loaded.trainable_parameters())
    }
    directory.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "model": "org/tiny", "num_layers": n_layers, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
