"""Weights from one type into another, some rows at a time."""

import numpy as np

from localllm.errors import InvalidModelError
from quant.tensors.source import PLAIN, Array

# Types that can be written; llama.cpp's other ones are made by its own quantizer.
WRITABLE = ("F32", "F16", "BF16", "Q8_0")


def to_float32(rows: Array, type_name: str) -> Array:
    """Rows as a source gives them, as float32 of shape (rows, columns).

    Raises:
        InvalidModelError: The type holds no weights, or none that can be unpacked.
    """
    match type_name:
        case "F32":
            return rows
        case "BF16":
            wide = rows.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        case "F16" | "F64":
            return rows.astype(np.float32)
    if type_name in PLAIN:
        raise InvalidModelError(f"A tensor of the type {type_name} holds no weights.")
    # Deferred: gguf-py brings numpy tables of every type (0.1 s), and plain files need none of it.
    from gguf import GGMLQuantizationType, dequantize

    try:
        unpacked: Array = dequantize(rows, GGMLQuantizationType[type_name])
    except (KeyError, NotImplementedError) as error:
        raise InvalidModelError(
            f"Weights of the type {type_name} cannot be unpacked.", "Convert the model from F32, F16 or BF16."
        ) from error
    return unpacked


def from_float32(values: Array, type_name: str) -> Array:
    """float32 of shape (rows, columns) in another type, as :meth:`TensorSource.read_rows` would give it.

    Raises:
        InvalidModelError: A value is too large for F16.
    """
    match type_name:
        case "F32":
            return values
        case "F16":
            try:
                with np.errstate(over="raise"):
                    return values.astype(np.float16)
            except FloatingPointError as error:
                raise InvalidModelError(
                    "The model holds weights past 65504, the largest that F16 can hold.", "Use bf16 or f32."
                ) from error
        case "BF16":
            return _bfloat16(values)
    from gguf import GGMLQuantizationType, quantize

    packed: Array = quantize(values, GGMLQuantizationType[type_name])
    return packed


def recode(rows: Array, source: str, target: str, shift: float = 0.0) -> Array:
    """Rows in the type ``target``, with ``shift`` added to each weight; ``rows`` themselves where nothing changes."""
    if source == target and not shift:
        return rows
    values = to_float32(rows, source)
    if shift:
        values = values + np.float32(shift)
    return from_float32(values, target)


def _bfloat16(values: Array) -> Array:
    """Round to the nearest, ties to even, as ggml does; a NaN stays one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 64
    return rounded.astype(np.uint16)
