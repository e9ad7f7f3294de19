"""Low-rank adapters: putting mlx-lm's LoRA and DoRA modules into a model, and directories that hold their weights.

The directory is the one that mlx-lm reads and writes: ``adapter_config.json`` and ``adapters.safetensors``.
"""

import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from finetune.recipe import Recipe
from localllm.errors import InvalidModelError, UsageError

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"


def add_adapters(model: nn.Module, recipe: Recipe) -> list[str]:
    """Freeze the model and put an adapter on each target; full training unfreezes everything instead.

    Adapters begin as no change: A is uniform in ±1/sqrt(inputs), B is zero. Draw from ``mx.random``'s state.

    Returns:
        The names of the adapted layers inside a block (``self_attn.q_proj``, …).

    Raises:
        UsageError: No layer of the model has such a name.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers  # deferred: imports transformers, 2 s

    if recipe.method == "full":
        model.unfreeze()
        return []
    model.freeze()
    keys = target_keys(model, recipe.targets)
    config = {"rank": recipe.rank, "scale": recipe.scale, "dropout": recipe.dropout, "keys": set(keys)}
    n_layers = min(recipe.layers or len(model.layers), len(model.layers))
    linear_to_lora_layers(model, n_layers, config, use_dora=recipe.method == "dora")
    return keys


def target_keys(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names inside a block of the linear layers whose names end as one of ``targets``.

    Raises:
        UsageError: There is none for one of them.
    """
    names = sorted({name for layer in model.layers for name, module in layer.named_modules() if _is_linear(module)})
    if targets == ("all",):
        return [name for name in names if not name.endswith(("router", "mlp.gate"))]  # a router is no projection
    chosen = [name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UsageError(f"This model has no layer {target}.", f"It has: {', '.join(names)}.")
    return chosen


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "to_lora") or type(module).__name__ in (
        "Linear",
        "QuantizedLinear",
        "SwitchLinear",
        "QuantizedSwitchLinear",
    )


def adapter_config(recipe: Recipe, keys: list[str], n_layers: int) -> dict[str, Any]:
    """What mlx-lm needs to build the same adapters again."""
    return {
        "fine_tune_type": recipe.method,
        "num_layers": min(recipe.layers or n_layers, n_layers),
        "lora_parameters": {
            "rank": recipe.rank,
            "scale": recipe.scale,
            "dropout": recipe.dropout,
            "keys": keys,
        },
    }


def save_adapter(directory: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write the trained weights and their configuration."""
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(directory / WEIGHTS), weights, metadata={"format": "mlx"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_weights(directory: Path, model: nn.Module) -> None:
    """Put saved weights into a model that has the adapters already.

    Raises:
        InvalidModelError: They belong to another model.
    """
    weights = cast("dict[str, mx.array]", mx.load(str(directory / WEIGHTS)))
    shapes = {name: value.shape for name, value in tree_flatten(model.trainable_parameters())}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise InvalidModelError(f"The weights in {directory} do not fit this model.")
    model.update(tree_unflatten(list(weights.items())))
