"""Quantized weights of a GGUF file as MLX's, as they are where both can say the same.

Scales and biases are float32: with 16 bits MLX would also compute ``scale * q + bias`` in 16 bits, which is 1e-3 off.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError
from localllm.gguf_types import TENSOR_TYPES
from quant.tensors.affine import AFFINE_BITS, GROUP, AffineRows, pack_words, unpack_blocks
from quant.tensors.dtypes import to_float32
from quant.tensors.rows import OutTensor, TensorPlan, planned_tensor, read_plan
from quant.tensors.source import Array, TensorInfo, TensorSource

_WIDTHS = (3, 4, 5, 6, 8)
_WITHOUT_MLX = ("bert", "falcon")
_BITS_OF_TYPE = {kind.name: kind.n_bytes * 8 / kind.block for kind in TENSOR_TYPES.values()}
_PARTS = ("weight", "scales", "biases")

OnNotice = Callable[[str], None]


def packed_tensors(
    architecture: str, plans: Sequence[TensorPlan], source: TensorSource, notice: OnNotice
) -> tuple[list[OutTensor], dict[str, Any]]:
    """The tensors of an MLX directory, and ``quantization`` of its config.json.

    Args:
        architecture: As GGUF has it.
        plans: From :func:`.plan.plan_to_hf` with stacked experts.
        source: The GGUF file.
        notice: Told of each tensor that has to be quantized anew.

    Raises:
        InvalidModelError: mlx-lm does not know the architecture, or nothing in the model is quantized.
    """
    if architecture in _WITHOUT_MLX:
        raise InvalidModelError(f"mlx-lm has no {architecture} models.", "Convert it with a plain type.")
    tensors: list[OutTensor] = []
    settings: dict[str, tuple[int, int]] = {}
    for plan in plans:
        own = source.tensors[plan.pieces[0].source]
        if not own.is_packed:
            tensors.append(planned_tensor(plan, source, own.type_name))
            continue
        bits, group_size = _settings(own)
        if own.type_name not in AFFINE_BITS:
            notice(f"{plan.name} is {own.type_name}, which MLX cannot hold as it is: quantized anew to {bits} bits.")
        settings[plan.name.removesuffix(".weight")] = (bits, group_size)
        tensors += _three(plan, source, bits, group_size)
    if not settings:
        raise InvalidModelError("Nothing in this model is quantized.", "Convert it with a plain type.")
    return tensors, _quantization(settings)


def _settings(tensor: TensorInfo) -> tuple[int, int]:
    """Bits and group size in MLX: the same, or the next wider where the type has no counterpart."""
    if tensor.type_name in AFFINE_BITS:
        return AFFINE_BITS[tensor.type_name], GROUP
    own = _BITS_OF_TYPE[tensor.type_name]
    return next((width for width in _WIDTHS if width >= own), 8), 64 if tensor.n_columns % 64 == 0 else GROUP


def _quantization(settings: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    (bits, group_size), _ = Counter(settings.values()).most_common(1)[0]
    found: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    for module, (own_bits, own_group) in settings.items():
        if (own_bits, own_group) != (bits, group_size):
            found[module] = {"group_size": own_group, "bits": own_bits, "mode": "affine"}
    return found


def _three(plan: TensorPlan, source: TensorSource, bits: int, group_size: int) -> list[OutTensor]:
    module, columns = plan.name.removesuffix(".weight"), plan.shape[-1]
    lead, groups = plan.shape[:-1], columns // group_size
    shapes = {"weight": ("U32", columns * bits // 32), "scales": ("F32", groups), "biases": ("F32", groups)}

    def chunks(part: str) -> Iterator[Array]:
        for rows, type_name in read_plan(plan, source):
            if type_name in AFFINE_BITS:
                yield _part(unpack_blocks(rows, type_name), part, bits)
            else:
                yield _anew(to_float32(rows, type_name), part, bits, group_size)

    def tensor(part: str) -> OutTensor:
        type_name, width = shapes[part]
        return OutTensor(TensorInfo(f"{module}.{part}", type_name, (*lead, width)), lambda: chunks(part))

    return [tensor(part) for part in _PARTS]


def _part(rows: AffineRows, part: str, bits: int) -> Array:
    match part:
        case "weight":
            return pack_words(rows.q, bits)
        case "scales":
            return rows.scales
    return rows.biases


def _anew(values: Array, part: str, bits: int, group_size: int) -> Array:
    import mlx.core as mx  # deferred: 0.1 s, and only some types need it

    parts = mx.quantize(mx.array(values), group_size, bits, stream=mx.cpu)
    return np.array(parts[_PARTS.index(part)])
