"""Adapters as PEFT writes them: ``adapter_config.json`` and ``adapter_model.safetensors``.

``lora_A.weight`` is (rank, inputs) and ``lora_B.weight`` (outputs, rank); of an embedding ``lora_embedding_A`` and
``lora_embedding_B``. The scale is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``
(https://huggingface.co/docs/peft/package_reference/lora).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.model_directory import read_model_config
from localllm.sanitize import one_line
from quant.adapters.lora import Lora, LoraPair, check_pair
from quant.adapters.names import EMBEDDING, Module, Modules
from quant.tensors.safetensors import read_arrays
from quant.tensors.source import Array

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?:embedding_)?(?P<half>[AB])(?:\.default)?(?:\.weight)?")
_UNSUPPORTED = ("use_dora", "layer_replication", "alora_invocation_tokens", "fan_in_fan_out", "megatron_config")


def read_peft(directory: Path, modules: Modules) -> Lora:
    """Read an adapter.

    Raises:
        InvalidModelError: It is damaged, does more than LoRA does, or changes a module that other forms lack.
    """
    config = _config(directory)
    halves: dict[str, dict[str, Array]] = {}
    for name, array in read_arrays(directory / WEIGHTS).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidModelError(
                f"The adapter changes {one_line(name, 80)} in another way than by LoRA, which is not supported.",
                "Fuse it into its model instead.",
            )
        halves.setdefault(match["module"], {})[match["half"]] = array
    pairs: dict[str, LoraPair] = {}
    experts: dict[str, dict[int, LoraPair]] = {}
    for name, own in halves.items():
        a, b = check_pair(name, own.get("A"), own.get("B"))
        pair = LoraPair(a, b, _scale(config, name, b.shape[-1]))
        module, expert = modules.in_peft(name)
        if expert is None:
            pairs[module.name] = pair
        else:
            experts.setdefault(module.name, {})[expert] = pair
    pairs |= {name: _stack(modules.named(name), own) for name, own in experts.items()}
    if not pairs:
        raise InvalidModelError("The adapter holds nothing that changes a model.")
    base = config.get("base_model_name_or_path")
    return Lora(pairs, base if isinstance(base, str) else "")


def write_peft(directory: Path, lora: Lora, modules: Modules) -> None:
    """Write an adapter into a new directory."""
    from safetensors.numpy import save_file  # deferred, with the other writers: 0.1 s

    even = lora.even()
    arrays: dict[str, Array] = {}
    targets: list[str] = []
    for name, pair in even.pairs.items():
        module = modules.named(name)
        infix = "lora_embedding_{}" if module.gguf == EMBEDDING else "lora_{}.weight"
        for own, a, b in _singles(module, pair):
            prefix = f"base_model.model.{own}."
            arrays |= {prefix + infix.format("A"): a, prefix + infix.format("B"): b}
            targets.append(own)
    save_file(arrays, directory / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": even.base,
        "inference_mode": True,
        "r": even.rank,
        "lora_alpha": even.scale * even.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # Whole names, for an adapter may leave out some blocks' modules.
        "target_modules": targets,
    }
    write_atomic(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = read_model_config(directory / CONFIG)
    except InvalidModelError as error:
        raise InvalidModelError(error.message.replace("config.json", CONFIG)) from error
    if config.get("peft_type") != "LORA":
        raise InvalidModelError(f"{CONFIG} is of no LoRA adapter.", "Only LoRA adapters can be converted.")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise InvalidModelError(f"The adapter uses {key}, which only PEFT has.", "Fuse it into its model instead.")
    return config


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha over rank, where a module may have an alpha of its own."""
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern")
    for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
        # A pattern is a name's end here; PEFT's regular expressions are somebody else's program.
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = own
            break
        if re.escape(pattern).replace(r"\.", ".") != pattern:
            raise InvalidModelError(f"The adapter's alpha_pattern {one_line(pattern, 60)!r} is no module's name.")
    if not isinstance(alpha, int | float) or rank < 1:
        raise InvalidModelError(f"{CONFIG} does not say the adapter's lora_alpha.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _stack(module: Module, pairs: Mapping[int, LoraPair]) -> LoraPair:
    """A mixture's stack out of its experts' own pairs; experts without one change by nothing."""
    first = next(iter(pairs.values()))
    missing = LoraPair(np.zeros_like(first.a), np.zeros_like(first.b), first.scale)
    even = Lora({str(n): pairs.get(n, missing) for n in range(len(module.experts))}).even()
    if len({(pair.a.shape, pair.b.shape) for pair in even.pairs.values()}) != 1:
        raise InvalidModelError(f"The adapter is damaged: the experts of {one_line(module.name, 80)} differ in size.")
    stacks = [np.stack([getattr(pair, half) for pair in even.pairs.values()]) for half in ("a", "b")]
    return LoraPair(stacks[0], stacks[1], even.scale)


def _singles(module: Module, pair: LoraPair) -> list[tuple[str, Array, Array]]:
    if not module.experts:
        return [(module.name, pair.a, pair.b)]
    return [
        (name, np.ascontiguousarray(a), np.ascontiguousarray(b))
        for name, a, b in zip(module.experts, pair.a, pair.b, strict=True)
    ]
