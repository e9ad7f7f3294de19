"""Models from Hugging Face's and MLX's form into GGUF and back, without torch, some rows at a time."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.gguf_types import TENSOR_TYPES
from localllm.model_directory import read_model_config
from localllm.models.transfer import require_room
from quant.architectures.config import config_of, flatten_config, impossible_settings, metadata_of, with_defaults
from quant.architectures.family import Config, Family
from quant.architectures.plan import plan_to_gguf, plan_to_hf
from quant.architectures.registry import family_of_config, family_of_metadata
from quant.directories import new_directory
from quant.keep_packed import OnNotice, packed_tensors
from quant.pooling import pooling_metadata, write_pooling
from quant.tensors.gguf_reader import GGUFSource
from quant.tensors.gguf_writer import write_gguf
from quant.tensors.metadata import MetadataValue
from quant.tensors.mlx_blocks import BlocksOfMLX
from quant.tensors.mlx_packed import UnpackedMLX
from quant.tensors.rows import OutTensor, TensorPlan, array_tensor, planned_tensor
from quant.tensors.safetensors import SafetensorsSource, write_safetensors
from quant.tensors.source import TensorSource
from quant.tensors.writing import OnTensor
from quant.tokenizers.to_gguf import gguf_tokenizer
from quant.tokenizers.to_hf import write_hf_tokenizer

# Told how far it has come: the tensor, bytes done, bytes in all.
OnProgress = Callable[[str, int, int | None], None]
OnCheck = Callable[[], None]

KEEP = "keep-4bit"
GGUF_TYPES = ("auto", "f32", "f16", "bf16", "q8_0", KEEP)
HF_DTYPES = ("f32", "f16", "bf16", KEEP)
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}  # llama_ftype
_TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCKS = {kind.name: kind.block for kind in TENSOR_TYPES.values()}
_SHARD_BYTES = 5 << 30
_QUANTIZATION_VERSION = 2
_UNUSED = 5  # token type
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}
_TOKENS, _SCORES, _TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"


def to_gguf(
    source_dir: Path,
    target: Path,
    *,
    type: str = "auto",  # noqa: A002 - what everyone calls it
    split_bytes: int = 0,
    name: str = "",
    pooling: str = "",
    progress: OnProgress = lambda *_: None,
    check_cancelled: OnCheck = lambda: None,
    notice: OnNotice = lambda _: None,
) -> tuple[Path, ...]:
    """Write a model directory (config.json, safetensors, tokenizer) as GGUF.

    Args:
        source_dir: In Hugging Face's or MLX's form; MLX's packed weights are unpacked.
        target: ``NAME.gguf``; it appears whole or not at all, in place of an earlier one.
        type: Of the matrices: ``f32``, ``f16``, ``bf16``, ``q8_0``, or ``auto`` for the model's own type. ``keep-4bit``
            keeps MLX's packed weights as they are where a type of GGUF's says the same (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0).
        split_bytes: See :func:`.gguf_writer.write_gguf`.
        name: ``general.name``; the directory's by default.
        pooling: See :func:`.pooling.pooling_metadata`.
        progress: Told after every few megabytes.
        check_cancelled: Called as often; an exception from it leaves nothing.
        notice: Told of each packed tensor that ``keep-4bit`` could not keep, in a sentence.

    Returns:
        The files, the first part first.

    Raises:
        InvalidModelError: The model is damaged, incomplete, or of an unknown kind.
        DiskFullError: There is no room.
    """
    if type not in GGUF_TYPES:
        raise InvalidModelError(f"{type!r} is no type to convert to.", f"Choose from {', '.join(GGUF_TYPES)}.")
    config = flatten_config(read_model_config(source_dir / "config.json"))
    family = family_of_config(config)
    config = with_defaults(family, config)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.name": name or source_dir.name,
        **metadata_of(family, config),
    }
    with SafetensorsSource(source_dir) as stored:
        packing = config.get("quantization")
        source: TensorSource = UnpackedMLX(stored, packing) if isinstance(packing, Mapping) else stored
        inexact: Collection[str] = ()
        if type == KEEP:
            source = blocks = _blocks(source, notice)
            inexact = blocks.inexact
        plans = plan_to_gguf(family, config, source, tied=_is_tied(family, config, source))
        chosen = _own_type(plans, source) if type in ("auto", KEEP) else type.upper()
        with impossible_settings("config.json"):
            tensors = [array_tensor(name, array) for name, array in family.made_tensors(config).items()]
        if type == KEEP:
            tensors += [planned_tensor(plan, source, _kept_type(plan, source, inexact)) for plan in plans]
        else:
            tensors += [planned_tensor(plan, source, _fitting_type(plan, chosen)) for plan in plans]
        n_vocab = next(plan.shape[0] for plan in plans if plan.name == "token_embd.weight")
        metadata |= {
            f"{family.architecture}.vocab_size": n_vocab,
            **pooling_metadata(source_dir, family.architecture, pooling),
        }
        metadata |= {"general.file_type": _FILE_TYPES[chosen], "general.quantization_version": _QUANTIZATION_VERSION}
        metadata |= _sized(gguf_tokenizer(source_dir), n_vocab)
        if family.architecture == "bert":
            metadata.setdefault("tokenizer.ggml.token_type_count", int(config.get("type_vocab_size", 1)))
        on_tensor = _reporter(tensors, progress, check_cancelled)
        return write_gguf(target, metadata, tensors, split_bytes=split_bytes, on_tensor=on_tensor)


def from_gguf(
    path: Path,
    target_dir: Path,
    *,
    dtype: str = "bf16",
    shard_bytes: int = _SHARD_BYTES,
    progress: OnProgress = lambda *_: None,
    check_cancelled: OnCheck = lambda: None,
    notice: OnNotice = lambda _: None,
) -> None:
    """Write a GGUF model as a directory that transformers and mlx-lm load.

    Args:
        path: The file, or a part of a split one.
        target_dir: Must not be there, or be empty; it appears whole or not at all.
        dtype: Of all weights: ``f32``, ``f16`` or ``bf16``, and quantized ones are unpacked. ``keep-4bit`` writes
            them for mlx-lm alone, packed: bit for bit as they are where MLX can hold them, else quantized anew.
        shard_bytes: The most data in one file.
        progress: Told after every few megabytes.
        check_cancelled: Called as often; an exception from it leaves nothing.
        notice: Told of each quantized tensor that ``keep-4bit`` could not keep, in a sentence.

    Raises:
        InvalidModelError: The model is damaged, incomplete, or of an unknown kind.
        StoreError: ``target_dir`` holds something.
        DiskFullError: There is no room.
    """
    if dtype not in HF_DTYPES:
        raise InvalidModelError(f"{dtype!r} is no type to convert to.", f"Choose from {', '.join(HF_DTYPES)}.")
    with new_directory(target_dir) as work, GGUFSource(path) as source:
        family = family_of_metadata(source.metadata)
        config = config_of(family, source.metadata, source)
        plans = plan_to_hf(family, config, source, stacked_experts=dtype == KEEP)
        embedding = source.tensors["token_embd.weight"]
        config |= {"vocab_size": embedding.shape[0], "torch_dtype": _TORCH_DTYPES.get(dtype.upper(), "float32")}
        if dtype == KEEP:
            tensors, packing = packed_tensors(family.architecture, plans, source, notice)
            config |= {"quantization": packing, "quantization_config": packing}
        else:
            tensors = [planned_tensor(plan, source, dtype.upper()) for plan in plans]
        config["tie_word_embeddings"] = "output.weight" not in source.tensors
        require_room(target_dir.parent, sum(tensor.info.n_bytes for tensor in tensors))
        on_tensor = _reporter(tensors, progress, check_cancelled)
        write_safetensors(work, tensors, shard_bytes=shard_bytes, on_tensor=on_tensor)
        write_hf_tokenizer(source.metadata, work, family.architecture)
        write_pooling(source.metadata, work, family.architecture)
        _write_config(work, config, source.metadata)


def _is_tied(family: Family, config: Config, source: TensorSource) -> bool:
    """Whether output and input are one: as config.json says, and in any case when there is no output."""
    output = next(rule.hf for rule in reversed(family.rules) if rule.gguf in ("output", "token_embd"))
    stored = any(name.endswith(f"{output}.weight") for name in source.tensors)
    return bool(config.get("tie_word_embeddings", family.tied)) or not stored


def _own_type(plans: Sequence[TensorPlan], source: TensorSource) -> str:
    """The type of most weights, of those that GGUF has too."""
    sizes: dict[str, int] = {}
    for plan in plans:
        if not plan.keep_f32:
            tensor = source.tensors[plan.pieces[0].source]
            sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.n_elements
    dominant = max(sizes, key=lambda kind: sizes[kind], default="F16")
    return dominant if dominant in _FILE_TYPES else "F32"


def _blocks(source: TensorSource, notice: OnNotice) -> BlocksOfMLX:
    """An MLX model's packed weights as blocks where they are exact.

    Raises:
        InvalidModelError: The model has none.
    """
    if not isinstance(source, UnpackedMLX):
        raise InvalidModelError("Nothing in this model is quantized.", "Choose another type.")
    blocks = BlocksOfMLX(source)
    for name in blocks.inexact:
        notice(f"{name} has scales that no type of GGUF's holds: quantized anew to Q8_0.")
    return blocks


def _kept_type(plan: TensorPlan, source: TensorSource, inexact: Collection[str]) -> str:
    """The type that a tensor has; Q8_0 for what was packed and could not be kept."""
    name = plan.pieces[0].source
    if name in inexact:
        return _fitting_type(plan, "Q8_0")
    return "F32" if plan.keep_f32 else source.tensors[name].type_name


def _fitting_type(plan: TensorPlan, chosen: str) -> str:
    """``chosen``, or what llama.cpp needs instead: F32 for some, F16 where rows do not fill blocks."""
    if plan.keep_f32:
        return "F32"
    return "F16" if plan.shape[-1] % _BLOCKS[chosen] else chosen


def _sized(tokenizer: Mapping[str, MetadataValue], n_vocab: int) -> dict[str, MetadataValue]:
    """A vocabulary as long as the embedding: padded with unused tokens, or cut where more cannot be embedded."""
    found = dict(tokenizer)
    padding: dict[str, Callable[[int], Any]] = {_TOKENS: lambda n: f"[PAD{n}]", _SCORES: lambda _: -1000.0}
    padding[_TOKEN_TYPES] = lambda _: _UNUSED
    for key, make in padding.items():
        values = found.get(key)
        if isinstance(values, list):
            found[key] = [*values[:n_vocab], *(make(n) for n in range(len(values), n_vocab))]
    return found


def _reporter(tensors: Sequence[OutTensor], progress: OnProgress, check_cancelled: OnCheck) -> OnTensor:
    total = sum(tensor.info.n_bytes for tensor in tensors)
    done = 0

    def on_tensor(name: str, n_bytes: int) -> None:
        nonlocal done
        check_cancelled()
        done += n_bytes
        progress(name, done, total)

    return on_tensor


def _write_config(directory: Path, config: dict[str, Any], metadata: Mapping[str, MetadataValue]) -> None:
    """config.json with the special tokens; one that the model lacks is null, else transformers takes the family's."""
    tokens = {f"{kind}_token_id": metadata.get(f"tokenizer.ggml.{own}_token_id") for kind, own in _SPECIAL.items()}
    write_atomic(directory / "config.json", json.dumps({**config, **tokens}, indent=2) + "\n")
