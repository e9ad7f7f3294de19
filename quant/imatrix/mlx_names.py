"""What MLX's modules are called in GGUF, by the tables of :mod:`quant.architectures`."""

from collections.abc import Mapping
from typing import Any

from quant.architectures.registry import family_of_config


def gguf_names(config: Mapping[str, Any], n_layer: int) -> dict[str, str]:
    """GGUF's weight names by MLX's module paths.

    Args:
        config: The model's config.json.
        n_layer: Its layers.

    Raises:
        InvalidModelError: The architecture is not known.
    """
    names: dict[str, str] = {}
    for rule in family_of_config(config).rules:
        module = rule.stacked or rule.hf
        for layer in range(n_layer if "{}" in module else 1):
            names[module.replace("{}", str(layer))] = f"{rule.gguf.replace('{}', str(layer))}.weight"
    return names
