"""Adapters as mlx-lm and ``localllm finetune`` write them: ``adapter_config.json`` and ``adapters.safetensors``.

``lora_a`` is (inputs, rank) and ``lora_b`` (rank, outputs); of a mixture's stack (experts, rank, inputs) and
(experts, outputs, rank) (mlx-lm's ``tuner/lora.py``).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from localllm.adapter_mlx import CONFIG, WEIGHTS, read_mlx_adapter
from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.model_directory import read_model_config
from localllm.sanitize import one_line
from quant.adapters.lora import Lora, LoraPair, check_pair
from quant.adapters.names import Module, Modules
from quant.tensors.safetensors import read_arrays
from quant.tensors.source import Array

__all__ = ["CONFIG", "WEIGHTS", "read_mlx", "write_mlx"]


def read_mlx(directory: Path, modules: Modules) -> Lora:
    """Read an adapter.

    Raises:
        InvalidModelError: It is damaged, DoRA, or changes a module that other forms lack.
    """
    settings = read_mlx_adapter(directory)
    dora = read_model_config(directory / CONFIG).get("fine_tune_type") == "dora"
    arrays = read_arrays(directory / WEIGHTS)
    halves: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if dora or leaf == "m":
            raise InvalidModelError(
                f"The adapter changes {one_line(module, 80)} by DoRA, which only MLX has.",
                "Train it with LoRA, or fuse it into its model.",
            )
        halves.setdefault(module, {})[leaf] = array
    pairs = {}
    for name, own in halves.items():
        known = modules.named(name)
        a, b = check_pair(name, _turned(own.get("lora_a")), _turned(own.get("lora_b")))
        pairs[known.name] = LoraPair(a, b, settings.scale)
    return Lora(pairs, settings.base)


def write_mlx(directory: Path, lora: Lora, modules: Modules) -> None:
    """Write an adapter into a new directory."""
    from safetensors.numpy import save_file  # deferred, with the other writers: 0.1 s

    even = lora.even()
    changed = [modules.named(name) for name in even.pairs]
    arrays: dict[str, Array] = {}
    for name, pair in even.pairs.items():
        arrays |= {f"{name}.lora_a": _back(pair.a), f"{name}.lora_b": _back(pair.b)}
    save_file(arrays, directory / WEIGHTS, metadata={"format": "mlx"})
    config = {
        "fine_tune_type": "lora",
        "model": even.base,
        "num_layers": _n_layers(changed, modules.n_layer),
        "lora_parameters": {
            "rank": even.rank,
            "scale": even.scale,
            "dropout": 0.0,
            "keys": sorted({module.key for module in changed}),
        },
    }
    write_atomic(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def _n_layers(changed: Sequence[Module], n_layer: int) -> int:
    """How many blocks from the end on are changed: mlx-lm adapts the last ones."""
    return n_layer - min((module.layer for module in changed if module.layer is not None), default=0)


def _turned(array: Array | None) -> Array | None:
    return array if array is None or array.ndim != 2 else np.ascontiguousarray(array.T)


def _back(array: Array) -> Array:
    return np.ascontiguousarray(array.T if array.ndim == 2 else array)
