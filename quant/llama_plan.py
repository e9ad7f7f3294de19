"""What llama.cpp will make of a model, tensor by tensor, before it makes it.

llama.cpp itself is asked (its ``dry_run``, in a child process) and its log is read: its choices depend on the
architecture, the layer, the number of heads and experts, the rows' length and on whether there is an importance matrix,
and they change from release to release. A copy of those rules would be wrong sooner or later; this cannot be.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localllm.errors import QuantizeError, UsageError
from localllm.gguf_header import GGUFHeader, TensorInfo, read_gguf_header, read_gguf_parts
from localllm.gguf_types import TENSOR_TYPES
from quant.child import CheckCancelled, Child, never_cancelled
from quant.imatrix.file import ImportanceMatrix
from quant.llama_choices import QuantizeChoices, source_parts
from quant.llama_types import (
    ASSERTS_IMATRIX,
    FLOAT_TYPES,
    REFUSED_WITHOUT_IMATRIX,
)

Reason = Literal["kept", "base", "mix", "override", "fallback"]

WORKER = "quant.llama_quantize_worker"
_TENSOR = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+)\s+-.*?(?:MiB \((\w+)\))?$")
_FALLBACK = re.compile(r"^warning: (\S+)\s+- ncols\s+\d+ not divisible by\s+\d+ \(required for type\s+(\w+)\)")
_MANUAL = re.compile(r": (\S+)\s+- applying manual override: (\w+) -> (\w+)$")
_BLOCKS = {kind.name: kind for kind in TENSOR_TYPES.values()}
_ALIGNMENT = 32
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor.

    Attributes:
        name: Its name.
        shape: As the file has it: the first is the length of a row.
        from_type: Its type in the source.
        to_type: Its type in the result.
        n_bytes: Its bytes in the result.
        reason: ``kept`` (never quantized, as norms, biases and routers; or of that type already), ``base`` (the
            recipe's base type), ``mix`` (the recipe's choice for this tensor), ``override`` (the person's choice),
            ``fallback`` (its rows are no multiple of the wanted type's block).
    """

    name: str
    shape: tuple[int, ...]
    from_type: str
    to_type: str
    n_bytes: int
    reason: Reason


@dataclass(frozen=True)
class QuantizePlan:
    """What becomes of a model.

    Attributes:
        tensors: In llama.cpp's order, which is that of the result.
        n_bytes: Expected size of the result; the metadata's share is an estimate to a few hundred bytes.
        bits: Bits per weight, over all parameters.
        warnings: What a person should know before it runs.
        lacking: Tensors that cannot be quantized so, because the importance matrix has nothing for them.
    """

    tensors: tuple[TensorPlan, ...]
    n_bytes: int
    bits: float
    warnings: tuple[str, ...]
    lacking: tuple[str, ...]


def plan_types(
    source: Path,
    choices: QuantizeChoices,
    imatrix: ImportanceMatrix | None = None,
    *,
    child: Child | None = None,
    check_cancelled: CheckCancelled = never_cancelled,
) -> QuantizePlan:
    """What :func:`quant.llama_quantize.quantize_gguf` would make of ``source``.

    Args:
        source: A GGUF model; the first file of a split one.
        choices: What is asked.
        imatrix: The importance matrix that will be given; it changes some of llama.cpp's choices.
        child: The process to ask, where it is there already.
        check_cancelled: As for :class:`quant.child.Child`.

    Raises:
        InvalidModelError: The source is damaged.
        UsageError: A tensor type does not fit the rows of the tensor that it was asked for.
        QuantizeError: llama.cpp refuses.
    """
    parts = source_parts(source)
    header = read_gguf_parts(parts)
    _check_explicit(header, choices)
    options = choices.native(dry_run=True, assume_imatrix=imatrix is not None)
    request = {"source": str(source), "target": "", "options": options, "imatrix": None}
    with ExitStack() as stack:
        asked = child or stack.enter_context(Child(WORKER, f"planning for {source.name}"))
        answer = asked.ask(request, check_cancelled=check_cancelled)
    tensors, wanted = _read_log(answer["log"], header, choices)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    data = sum(-(-tensor.n_bytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)
    # Of a large vocabulary's header every reading takes a while: that of the only part was read above.
    headers = [header] if len(parts) == 1 else [read_gguf_header(part) for part in parts]
    metadata = sum(_metadata_bytes(part) for part in headers)
    bits = 8 * sum(tensor.n_bytes for tensor in tensors) / max(parameters, 1)
    return QuantizePlan(
        tensors, data + metadata, bits, _warnings(tensors, wanted, choices), _lacking(tensors, choices, imatrix)
    )


def refuse_lacking(plan: QuantizePlan, *, has_imatrix: bool) -> None:
    """Refuse what llama.cpp would end on: very few bits without an importance matrix.

    Raises:
        QuantizeError: Some tensor needs one.
    """
    if not plan.lacking:
        return
    first = plan.lacking[0]
    kind = next(tensor.to_type for tensor in plan.tensors if tensor.name == first)
    if first in (*_EMBEDDINGS, "output.weight"):
        raise QuantizeError(
            f"{first} cannot be {kind}: that needs an importance matrix, which has nothing for it.",
            "Choose another type for it, or leave out `pure`.",
        )
    more = f" and {len(plan.lacking) - 1} more" if len(plan.lacking) > 1 else ""
    if has_imatrix:
        raise QuantizeError(
            f"The importance matrix has nothing fitting for {first}{more}, which {kind} needs.",
            "It was made for another model, or on too little text.",
        )
    raise QuantizeError(f"{kind} needs an importance matrix ({first}{more}).", "Make one, or take q4_k_m or q3_k_m.")


def refuse_other_model(plan: QuantizePlan, imatrix: ImportanceMatrix) -> None:
    """Refuse an importance matrix of another model: llama.cpp would use what fits by chance, or nothing.

    Raises:
        QuantizeError: It has other inputs for a matrix, or knows none that is quantized.
    """
    hint = "Give one that was made for this model, or `default`."
    quantized = [
        tensor
        for tensor in plan.tensors
        if tensor.name.startswith("blk.") and tensor.reason != "kept" and tensor.to_type not in FLOAT_TYPES
    ]
    known = [tensor for tensor in quantized if tensor.name in imatrix.entries]
    for tensor in known:
        if not _fits(tensor, imatrix):
            has, needs = imatrix.entries[tensor.name].sums.size, tensor.shape[0] * math.prod(tensor.shape[2:])
            raise QuantizeError(
                f"The importance matrix is of another model: it has {has} inputs for {tensor.name}, which has {needs}.",
                hint,
            )
    if quantized and not known:
        raise QuantizeError(
            f"The importance matrix is of another model: it has nothing for {quantized[0].name} or any other matrix "
            "that is quantized.",
            hint,
        )


def _check_explicit(header: GGUFHeader, choices: QuantizeChoices) -> None:
    """llama.cpp asserts where these two do not fit; everything else falls back."""
    asked = {"output.weight": choices.output_type} | dict.fromkeys(_EMBEDDINGS, choices.embedding_type)
    for tensor in header.tensors:
        kind = asked.get(tensor.name)
        if kind and tensor.shape[0] % _BLOCKS[kind].block:
            raise UsageError(
                f"{tensor.name} cannot be {kind}: its rows of {tensor.shape[0]} are no multiple of "
                f"{_BLOCKS[kind].block}.",
                "q8_0 takes any multiple of 32.",
            )


def _read_log(
    lines: Sequence[str], header: GGUFHeader, choices: QuantizeChoices
) -> tuple[tuple[TensorPlan, ...], dict[str, str]]:
    """The tensors, and which type was wanted where the rows forced another."""
    known = {tensor.name: tensor for tensor in header.tensors}
    wanted: dict[str, str] = {}
    manual: set[str] = set()
    plans: list[TensorPlan] = []
    for line in lines:
        if fallback := _FALLBACK.match(line):
            wanted[fallback[1]] = fallback[2].upper()
        elif override := _MANUAL.search(line):
            manual.add(override[1])
        elif (found := _TENSOR.match(line)) and found[1] in known:
            plans.append(_tensor_plan(known[found[1]], found[2], choices, manual, wanted))
    if len(plans) != len(known):
        raise QuantizeError(
            f"llama.cpp's plan names {len(plans)} of {len(known)} tensors.",
            "This version of llama.cpp words its log in another way.",
        )
    return tuple(plans), wanted


def _tensor_plan(
    tensor: TensorInfo, chosen: str | None, choices: QuantizeChoices, manual: set[str], wanted: Mapping[str, str]
) -> TensorPlan:
    to_type = chosen.upper() if chosen else tensor.type_name
    reason: Reason
    if tensor.name in wanted:
        reason = "fallback"
    elif tensor.name in manual:
        reason = "override"
    elif chosen is None:
        reason = "kept"
    elif _is_explicit(tensor.name, choices):
        reason = "override"
    else:
        reason = "base" if to_type == choices.file_type.base else "mix"
    kind = _BLOCKS[to_type]
    n_bytes = tensor.n_elements // kind.block * kind.n_bytes
    return TensorPlan(tensor.name, tensor.shape, tensor.type_name, to_type, n_bytes, reason)


def _is_explicit(name: str, choices: QuantizeChoices) -> bool:
    return bool(choices.output_type and name == "output.weight") or bool(choices.embedding_type and name in _EMBEDDINGS)


def _lacking(
    tensors: Sequence[TensorPlan], choices: QuantizeChoices, imatrix: ImportanceMatrix | None
) -> tuple[str, ...]:
    return tuple(
        tensor.name
        for tensor in tensors
        if tensor.to_type != tensor.from_type and _needs_imatrix(tensor, choices) and not _fits(tensor, imatrix)
    )


def _needs_imatrix(tensor: TensorPlan, choices: QuantizeChoices) -> bool:
    if tensor.name in (*_EMBEDDINGS, "output.weight"):
        return tensor.to_type in ASSERTS_IMATRIX
    q2_k_s = tensor.to_type == "Q2_K" and choices.file_type.name == "q2_k_s"
    return q2_k_s or tensor.to_type in REFUSED_WITHOUT_IMATRIX


def _fits(tensor: TensorPlan, imatrix: ImportanceMatrix | None) -> bool:
    entry = imatrix.entries.get(tensor.name) if imatrix else None
    n_matrices = math.prod(tensor.shape[2:])
    return entry is not None and entry.sums.size == tensor.shape[0] * n_matrices


def _warnings(tensors: Sequence[TensorPlan], wanted: Mapping[str, str], choices: QuantizeChoices) -> tuple[str, ...]:
    said = []
    if wanted:
        swaps = sorted({(wanted[tensor.name], tensor.to_type) for tensor in tensors if tensor.name in wanted})
        rows = sorted({tensor.shape[0] for tensor in tensors if tensor.name in wanted})
        n_all = sum(tensor.reason != "kept" for tensor in tensors)
        said.append(
            f"{len(wanted)} of {n_all} matrices get another type than asked, because their rows "
            f"({', '.join(map(str, rows))}) are no multiple of its block: "
            f"{', '.join(f'{old} becomes {new}' for old, new in swaps)}."
        )
    again = [tensor for tensor in tensors if tensor.to_type != tensor.from_type and tensor.from_type not in FLOAT_TYPES]
    if again:
        kinds = ", ".join(sorted({tensor.from_type for tensor in again}))
        said.append(
            f"The source is quantized already ({kinds}): quantizing again loses more than starting from the original."
        )
    if choices.file_type.name == "mxfp4_moe" and not any(tensor.to_type == "MXFP4" for tensor in tensors):
        said.append("This model has no experts: mxfp4_moe makes all of it Q8_0.")
    return tuple(said)


def _metadata_bytes(header: GGUFHeader) -> int:
    return min((tensor.offset for tensor in header.tensors), default=header.file_size)
