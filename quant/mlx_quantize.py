"""MLX's own quantizations of a model: affine 2-8 bits, mixed widths, 4- and 8-bit floats, AWQ and DWQ.

mlx-lm says which modules are packed and how; here the weights are loaded as they are needed and written one after the
other, so that rounding needs little more memory than the largest tensor.
"""

import copy
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError, UsageError
from localllm.files import write_atomic
from localllm.model_directory import read_model_config
from localllm.models.manifest import MANIFEST
from localllm.models.transfer import require_room
from localllm.sanitize import one_line
from quant.convert import from_gguf
from quant.directories import new_directory
from quant.imatrix.texts import default_texts
from quant.mlx_learned import Samples, Watch, distil, quantize_awq, sequences
from quant.mlx_types import MLXType, find_mlx_type
from quant.tensors.gguf_reader import GGUFSource
from quant.tensors.rows import OutTensor
from quant.tensors.safetensors import INDEX, SafetensorsSource, write_safetensors
from quant.tensors.source import Array, TensorInfo

# Told of the stage or tensor, of what is done and of all there is: bytes, or steps.
OnProgress = Callable[[str, int, int | None], None]
OnCheck = Callable[[], None]
OnNotice = Callable[[str], None]

_SHARD_BYTES = 5 << 30
_KEPT_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_NOT_KEPT = ("config.json", INDEX, MANIFEST)
_TYPE_NAMES = {"uint32": "U32", "uint8": "U8", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# What mlx-lm raises for a directory that is not what it expects: wrong names, shapes, types, missing files.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


def quantize_mlx(
    source: Path,
    target_dir: Path,
    type: str,  # noqa: A002 - what everyone calls it
    *,
    group_size: int = 0,
    samples: Samples | None = None,
    progress: OnProgress = lambda *_: None,
    check_cancelled: OnCheck = lambda: None,
    notice: OnNotice = lambda _: None,
) -> None:
    """Write a model as a directory that mlx-lm loads.

    Args:
        source: A directory in Hugging Face's or MLX's form, or a GGUF file.
        target_dir: Must not be there, or be empty; it appears whole or not at all.
        type: Of :data:`.mlx_types.MLX_TYPES`.
        group_size: 32, 64 or 128 for affine types; 0 for the type's own.
        samples: Texts that AWQ and DWQ are fitted to; by default the one that comes with the program.
        progress: Told after each tensor, or step.
        check_cancelled: Called as often; an exception from it leaves nothing.
        notice: Told, in a sentence, what was not quantized and why.

    Raises:
        UsageError: The type or group size is none, or there is too little text.
        InvalidModelError: The model is damaged, or of an unknown kind.
        StoreError: ``target_dir`` holds something.
        DiskFullError: There is no room.
    """
    kind = _with_group(find_mlx_type(type), group_size)
    watch = Watch(progress, check_cancelled, notice)
    with new_directory(target_dir) as work, ExitStack() as stack:
        directory = source
        if source.is_file():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=target_dir.parent, prefix=".plain-")))
            plain = _plain_type(source)
            from_gguf(source, directory / "model", dtype=plain, progress=progress, check_cancelled=check_cancelled)
            directory /= "model"
        model, config = _load(directory, notice)
        if kind.learned:
            samples = samples or Samples(tuple(text.text for text in default_texts()[0]))
            model, config = _learn(model, config, kind, directory, samples, watch)
        else:
            config = _round(model, config, kind, notice)
        _write(work, model, config, directory, progress, check_cancelled)


def _with_group(kind: MLXType, group_size: int) -> MLXType:
    if not group_size or group_size == kind.group_size:
        return kind
    if kind.mode != "affine" or group_size not in (32, 64, 128):
        allowed = "32, 64 or 128" if kind.mode == "affine" else str(kind.group_size)
        raise UsageError(f"Groups of {group_size} are not possible here.", f"Use {allowed}.")
    return MLXType(kind.bits, group_size, kind.mode, kind.mixed, kind.learned, kind.what)


def _plain_type(path: Path) -> str:
    """What a GGUF file is unpacked to: bfloat16 if it is that, else F16, which is what most quantized types hold."""
    with GGUFSource(path) as source:
        sizes: dict[str, int] = {}
        for tensor in source.tensors.values():
            sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.n_elements
    return "bf16" if max(sizes, key=lambda kind: sizes[kind], default="") == "BF16" else "f16"


def _load(directory: Path, notice: OnNotice) -> tuple[Any, dict[str, Any]]:
    """A model whose weights are read when they are needed, in the type that its config.json says."""
    # Deferred: mlx-lm brings transformers, 2 s.
    from mlx_lm.utils import dequantize_model, load_model

    config = read_model_config(directory / "config.json")
    with SafetensorsSource(directory):
        pass  # a file that is cut short or missing is named by this, as elsewhere: mlx-lm lists hundreds of weights
    try:
        model, _ = load_model(directory, lazy=True)
    except _LOAD_ERRORS as error:
        raise InvalidModelError(f"mlx-lm cannot load the model: {one_line(str(error), 200).rstrip('.')}.") from error
    if config.pop("quantization", None) or config.get("quantization_config"):
        notice("The model is quantized already: its weights are unpacked first, which keeps their errors.")
        model = dequantize_model(model)
        config.pop("quantization_config", None)
    _cast(model, config)
    return model, config


def _cast(model: Any, config: dict[str, Any]) -> None:
    """Bring what is not packed into the type that config.json says, as mlx-lm does when it converts."""
    import mlx.core as mx  # deferred, with mlx-lm
    from mlx.utils import tree_map_with_path

    dtype = _dtype(config)
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, value: Any) -> Any:
        return value.astype(dtype) if may_cast(path) and mx.issubdtype(value.dtype, mx.floating) else value

    if dtype is not None:
        model.update(tree_map_with_path(cast, model.parameters()))


def _dtype(config: dict[str, Any]) -> Any:
    """The mx.Dtype that config.json says; None where it says none."""
    import mlx.core as mx  # deferred, with mlx-lm

    inner = config.get("text_config")
    name = config.get("torch_dtype") or config.get("dtype") or (inner.get("dtype") if isinstance(inner, dict) else None)
    return getattr(mx, name) if name in ("float16", "bfloat16", "float32") else None


def _round(model: Any, config: dict[str, Any], kind: MLXType, notice: OnNotice) -> dict[str, Any]:
    """Quantize every module that can be, in place and not yet computed; returns config.json with ``quantization``."""
    from mlx_lm.convert import mixed_quant_predicate_builder  # deferred, with the rest of mlx-lm
    from mlx_lm.utils import quantize_model

    predicate: Any = None
    if kind.mixed:
        try:
            predicate = mixed_quant_predicate_builder(kind.mixed, model, kind.group_size)
        except ValueError as error:
            raise InvalidModelError("The model has no down projections, which mixed types go by.") from error
    for path, module in model.named_modules():
        if hasattr(module, "to_quantized") and module.weight.shape[-1] % kind.group_size:
            notice(
                f"{path} has rows of {module.weight.shape[-1]}, which do not fill groups of {kind.group_size}: "
                "it stays as it is."
            )
    with redirect_stdout(io.StringIO()):  # mlx-lm prints the bits per weight
        _, quantized = quantize_model(
            model, config, kind.group_size, kind.bits, mode=kind.mode, quant_predicate=predicate
        )
    found: dict[str, Any] = quantized
    return found


def _learn(
    model: Any, config: dict[str, Any], kind: MLXType, directory: Path, samples: Samples, watch: Watch
) -> tuple[Any, dict[str, Any]]:
    """Quantize by AWQ or DWQ; returns the quantized model and its config.json."""
    import mlx.core as mx  # deferred, with mlx-lm
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(directory)  # type: ignore[no-untyped-call]  # mlx-lm's own
    rows = sequences(tokenizer, samples)
    mx.random.seed(samples.seed)
    dtype = _dtype(config) or mx.bfloat16
    if mx.default_device() == mx.cpu:
        dtype = mx.float32  # 16-bit products do not use BLAS on the CPU
        model.set_dtype(dtype)
    if kind.learned == "awq":
        quantized, found = model, quantize_awq(model, config, kind, rows, watch)
    else:
        quantized = copy.deepcopy(model)
        found = _round(quantized, config, kind, watch.notice)
        distil(quantized, model, rows, watch, dtype, samples.seed)
    _cast(quantized, config)
    return quantized, found


def _write(
    work: Path, model: Any, config: dict[str, Any], directory: Path, progress: OnProgress, check_cancelled: OnCheck
) -> None:
    import mlx.core as mx  # deferred, with mlx-lm
    from mlx.utils import tree_flatten, tree_map

    arrays = dict(tree_flatten(model.parameters()))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))  # what is written is held by nobody else
    tensors = [_tensor(name, arrays) for name in list(arrays)]
    total, done = sum(tensor.info.n_bytes for tensor in tensors), 0
    require_room(work, total)

    def on_tensor(name: str, n_bytes: int) -> None:
        nonlocal done
        check_cancelled()
        done += n_bytes
        progress(name, done, total)

    write_safetensors(work, tensors, shard_bytes=_SHARD_BYTES, on_tensor=on_tensor)
    config["quantization_config"] = config["quantization"]
    write_atomic(work / "config.json", json.dumps(config, indent=2) + "\n")
    for path in directory.iterdir():
        if path.is_file() and path.suffix in _KEPT_SUFFIXES and path.name not in _NOT_KEPT:
            shutil.copyfile(path, work / path.name)


def _tensor(name: str, arrays: dict[str, Any]) -> OutTensor:
    """A tensor that is computed when it is written, and forgotten after."""
    array = arrays[name]
    type_name = _TYPE_NAMES[str(array.dtype).rpartition(".")[2]]

    def chunks() -> Iterator[Array]:
        import mlx.core as mx  # deferred, with mlx-lm

        value = arrays.pop(name)
        yield np.array(value.view(mx.uint16) if type_name == "BF16" else value)

    return OutTensor(TensorInfo(name, type_name, tuple(array.shape)), chunks)
