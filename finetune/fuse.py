"""What was trained, written into its model's weights: one directory that needs no adapter any more.

Every sum is taken in float32 and rounded once, to the type that is written. What that rounding takes away of the
adapter is measured: in 4 bits it can be most of it.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from localllm.adapter_mlx import WEIGHTS, read_mlx_adapter
from localllm.errors import InvalidModelError, UsageError
from localllm.files import write_atomic
from localllm.model_directory import read_model_config
from localllm.models.transfer import require_room
from quant.convert import OnCheck, OnProgress
from quant.directories import new_directory
from quant.tensors.rows import OutTensor
from quant.tensors.safetensors import INDEX, write_safetensors
from quant.tensors.source import Array, TensorInfo

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
_TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_TYPE_NAMES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8"}
_SHARD_BYTES = 5 << 30
_KEPT = (".json", ".jinja", ".txt", ".model", ".tiktoken")  # tokenizer and templates; no code
_REPLACED = ("config.json", "manifest.json", INDEX, "hf_quant_config.json")
# What mlx-lm raises for a directory, or an adapter, that is not what it expects.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Fused:
    """What rounding took away of an adapter: |written - exact| / |exact - base| of each layer (Frobenius).

    Attributes:
        errors: By the layer's name; 0 is nothing, 1 as much as the adapter had changed.
        stacked: Some layer is a mixture's stack of experts, which only MLX stores so.
    """

    errors: dict[str, float]
    stacked: bool

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that lost most."""
        return max(self.errors.items(), key=lambda item: item[1])

    @property
    def mean(self) -> float:
        """Over all layers."""
        return sum(self.errors.values()) / len(self.errors)

    def line(self) -> str:
        """For a person."""
        name, worst = self.worst
        return f"Rounding took {self.mean:.2%} of the adapter's change away on average, {worst:.2%} in {name}."


def fuse(
    base: Path,
    adapter: Path,
    target: Path,
    *,
    dtype: str | None = None,
    requantize: bool = False,
    progress: OnProgress = lambda *_: None,
    check_cancelled: OnCheck = lambda: None,
) -> Fused:
    """Write ``base`` with ``adapter`` (LoRA or DoRA, of a mixture's experts too) in its weights.

    A tensor at a time is computed and written: besides the largest one, nothing is held in memory.

    Args:
        base: A directory in MLX's or Hugging Face's form.
        adapter: A directory in MLX's form.
        target: Must not be there, or be empty; it appears whole or not at all.
        dtype: ``f32``, ``f16`` or ``bf16``; None keeps each tensor's own, and unpacks packed ones to their scales'.
        requantize: Pack again what was packed, in the same way; layers without an adapter keep their every bit.
        progress: Told after every tensor.
        check_cancelled: Called as often; an exception from it leaves nothing.

    Raises:
        UsageError: ``requantize``, and the base is not quantized.
        InvalidModelError: The base is damaged, or the adapter is for another one.
        StoreError: ``target`` holds something.
        DiskFullError: There is no room.
    """
    config = read_model_config(base / "config.json")
    model, own = _with_adapter(base, adapter)
    if requantize and "quantization" not in own:
        raise UsageError("This model is not quantized.", "Export it as mlx:f16, or quantize the result.")
    changes, stacked = _fuse_layers(model, None if dtype is None else DTYPES[dtype], requantize=requantize)
    if requantize:
        config["quantization"] = config["quantization_config"] = own["quantization"]
    else:
        _unpack(model)
        config = _without_packing(config)
    weights = dict(tree_flatten(model.parameters()))
    del model  # its tensors must go, one by one, as they are written
    if dtype is not None:
        config["torch_dtype"] = _TORCH_DTYPES[dtype]
        if not requantize:
            weights = {name: _cast(value, DTYPES[dtype]) for name, value in weights.items()}
    errors: dict[str, float] = {}
    tensors = [_out_tensor(name, weights, changes, errors) for name in sorted(weights)]
    _write(base, target, config, tensors, progress, check_cancelled)
    return Fused(errors, stacked)


def write_whole(
    base: Path,
    trained: Path,
    target: Path,
    *,
    progress: OnProgress = lambda *_: None,
    check_cancelled: OnCheck = lambda: None,
) -> None:
    """Write ``base`` with the weights that full training gave it.

    Args:
        base: A directory in MLX's or Hugging Face's form, not packed.
        trained: A directory whose ``adapters.safetensors`` holds every weight.
        target: As for :func:`fuse`, like all that follows.
        progress: As there.
        check_cancelled: As there.

    Raises:
        InvalidModelError: ``config.json`` of the base is damaged.
        StoreError: ``target`` holds something.
        DiskFullError: There is no room.
    """
    config = read_model_config(base / "config.json")
    weights = cast("dict[str, mx.array]", mx.load(str(trained / WEIGHTS)))
    dtype = max(weights.values(), key=lambda value: value.size).dtype
    config["torch_dtype"] = next(_TORCH_DTYPES[name] for name, known in DTYPES.items() if known == dtype)
    tensors = [_out_tensor(name, weights, {}, {}) for name in sorted(weights)]
    _write(base, target, config, tensors, progress, check_cancelled)


def _write(
    base: Path,
    target: Path,
    config: dict[str, Any],
    tensors: Sequence[OutTensor],
    progress: OnProgress,
    check_cancelled: OnCheck,
) -> None:
    """The directory: weights, settings, and the base's tokenizer and templates."""
    total, done = sum(tensor.info.n_bytes for tensor in tensors), 0
    require_room(target.parent, total)

    def on_tensor(name: str, n_bytes: int) -> None:
        nonlocal done
        check_cancelled()
        done += n_bytes
        progress(name, done, total)

    with new_directory(target) as work:
        write_safetensors(work, tensors, shard_bytes=_SHARD_BYTES, on_tensor=on_tensor)
        for path in sorted(base.iterdir()):
            if path.is_file() and path.suffix in _KEPT and path.name not in _REPLACED:
                shutil.copy(path, work / path.name)
        write_atomic(work / "config.json", json.dumps(config, indent=2) + "\n")


def _with_adapter(base: Path, adapter: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model with adapters on it, nothing of it computed yet; and its settings as mlx-lm understands them.

    Raises:
        InvalidModelError: One of them is damaged, or they do not belong together.
    """
    from mlx_lm.tuner.utils import load_adapters  # deferred: transformers, 2 s
    from mlx_lm.utils import load_model

    read_mlx_adapter(adapter)
    try:
        model, config = load_model(base, lazy=True, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise InvalidModelError(f"MLX cannot load {base.name}: {_first_line(error)}.") from error
    try:
        load_adapters(model, str(adapter))
    except _LOAD_ERRORS as error:
        raise InvalidModelError(
            f"The adapter does not fit this model: {_first_line(error)}.", "Name the model that it was trained on."
        ) from error
    model.eval()
    return model, config


def _fuse_layers(
    model: nn.Module, dtype: mx.Dtype | None, *, requantize: bool
) -> tuple[dict[str, tuple[str, mx.array]], bool]:
    """Put plain layers in place of those with adapters.

    Returns:
        By the name of each changed weight: the layer, and the share of its change that is lost, not yet computed.
    """
    fused, changes, stacked = [], {}, False
    for name, module in model.named_modules():
        if not hasattr(module, "fuse"):
            continue
        layer, error = _fuse_layer(module, dtype, requantize=requantize)
        fused.append((name, layer))
        changes[f"{name}.weight"] = (name, error)
        stacked |= layer.weight.ndim > 2
    if not fused:
        raise InvalidModelError("The adapter changes no layer of this model.", "Name the model that it was trained on.")
    model.update_modules(tree_unflatten(fused))
    return changes, stacked


def _fuse_layer(module: Any, dtype: mx.Dtype | None, *, requantize: bool) -> tuple[Any, mx.array]:
    from mlx_lm.utils import dequantize_model  # deferred: 2 s

    inner = _inner(module)
    packing = {key: getattr(inner, key) for key in ("group_size", "bits", "mode")} if "scales" in inner else None
    own = _float_type(inner)
    _widen(inner)
    dequantize_model(module)
    before = _inner(module).weight.astype(mx.float32)
    _inner(module).weight = before
    layer = module.fuse()
    exact = layer.weight
    layer.weight = exact.astype(own if dtype is None or (requantize and packing) else dtype)
    written = layer.weight
    if requantize and packing:
        layer = layer.to_quantized(**packing)
        written = mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **packing)
    change = mx.linalg.norm((exact - before).reshape(-1))
    error = mx.linalg.norm((written.astype(mx.float32) - exact).reshape(-1))
    return layer, mx.where(change > 0, error / mx.maximum(change, 1e-30), 0.0)


def _inner(module: Any) -> Any:
    return module.linear if "linear" in module else module.embedding


def _float_type(module: Any) -> mx.Dtype:
    """The type that a layer's weights have once they are unpacked."""
    held = module.scales.dtype if "scales" in module else module.weight.dtype
    return held if held in DTYPES.values() else mx.bfloat16  # the scales of mxfp4 and its like are bytes


def _widen(module: Any) -> None:
    """Have a packed layer unpacked without rounding; the byte scales of mxfp4 cannot be widened, and need not be."""
    if "scales" in module and module.scales.dtype in DTYPES.values():
        module.scales = module.scales.astype(mx.float32)
        if module.get("biases") is not None:
            module.biases = module.biases.astype(mx.float32)


def _unpack(model: nn.Module) -> None:
    """Turn every packed layer into a plain one of its own float type."""
    from mlx_lm.utils import dequantize_model  # deferred: 2 s

    types = {}
    for name, module in model.named_modules():
        if "scales" in module:
            types[name] = _float_type(module)
            _widen(module)
    dequantize_model(model)
    for name, module in model.named_modules():
        if name in types:
            module.weight = module.weight.astype(types[name])


def _cast(value: mx.array, dtype: mx.Dtype) -> mx.array:
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


def _without_packing(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = _without_packing(kept["text_config"])
    return kept


def _out_tensor(
    name: str, weights: dict[str, mx.array], changes: dict[str, tuple[str, mx.array]], errors: dict[str, float]
) -> OutTensor:
    """A tensor that is computed when it is written, and taken out of ``weights`` then."""
    value = weights[name]
    info = TensorInfo(name, _TYPE_NAMES[value.dtype], value.shape or (1,))
    return OutTensor(info, partial(_computed, name, weights.pop, changes.pop, errors))


def _computed(
    name: str,
    take: Callable[[str], mx.array],
    take_change: Callable[[str, None], tuple[str, mx.array] | None],
    errors: dict[str, float],
) -> Iterator[Array]:
    value, change = take(name), take_change(name, None)
    if change is not None:
        layer, error = change
        mx.eval(value, error)  # together: they share what is large
        errors[layer] = float(np.array(error))
    if value.dtype == mx.bfloat16:
        value = value.view(mx.uint16)  # numpy has no bfloat16
    yield np.array(value, copy=False)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
