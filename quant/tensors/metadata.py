"""Metadata of GGUF files, as Python values and as the bytes of the format.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from collections.abc import Mapping

from localllm.gguf_types import ARRAY, BOOL, NUMBERS, STRING, UINT32

MetadataValue = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

_UINT16, _INT32, _FLOAT32, _UINT64, _INT64 = 2, 5, 6, 10, 11
# llama.cpp asks for exactly these types.
_KINDS = {"split.no": _UINT16, "split.count": _UINT16, "split.tensors.count": _INT32}


def encode_metadata(metadata: Mapping[str, MetadataValue]) -> bytes:
    """Every pair as the format writes it.

    A whole number becomes u32 where it fits, in an array i32, as llama.cpp expects them; a fraction becomes f32.
    """
    return b"".join(_string(key) + _value(value, _KINDS.get(key)) for key, value in metadata.items())


def _value(value: MetadataValue, kind: int | None) -> bytes:
    if isinstance(value, list):
        return _array(value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if kind is None:
        kind = _kind([value], UINT32)
    return struct.pack("<I", kind) + NUMBERS[kind].pack(value)


def _array(values: list[bool] | list[int] | list[float] | list[str]) -> bytes:
    if values and isinstance(values[0], str):
        body = b"".join(_string(str(value)) for value in values)
        return struct.pack("<IIQ", ARRAY, STRING, len(values)) + body
    kind = _kind(values, _INT32)  # type: ignore[arg-type]  # strings are dealt with
    layout = NUMBERS[kind].format
    return struct.pack("<IIQ", ARRAY, kind, len(values)) + struct.pack(f"<{len(values)}{layout[-1]}", *values)


def _kind(values: list[bool] | list[int] | list[float], usual: int) -> int:
    """The type that holds all of ``values``; ``usual`` for whole numbers that fit it."""
    if all(isinstance(value, bool) for value in values) and values:
        return BOOL
    if any(isinstance(value, float) for value in values):
        return _FLOAT32
    low, high = min(values, default=0), max(values, default=0)
    if usual == UINT32 and low >= 0 and high < 1 << 32:
        return UINT32
    if low >= -(1 << 31) and high < 1 << 31:
        return _INT32
    return _UINT64 if low >= 0 else _INT64


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
