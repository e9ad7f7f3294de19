"""llama.cpp's blocks that MLX's affine groups can hold bit for bit, and back.

Both say a weight is ``scale * q + bias``; they differ in where the bits lie. Q4_0, Q5_0 and Q8_0 have no bias of their
own, but one that follows from the scale; Q4_K and Q5_K make scale and bias of a group of 32 from numbers of 6 bits, a
product that float32 holds exactly. Types with groups of 16 (Q2_K, Q3_K, Q6_K) and with tables (IQ*) have no
counterpart.

The layouts: ``ggml-common.h`` of https://github.com/ggml-org/ggml.
"""

from dataclasses import dataclass

import numpy as np

from quant.tensors.source import Array

GROUP = 32
# Bits of q by type.
AFFINE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q8_0": 8}
# q of a weight that is 0 in types without a bias.
_MIDDLE = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
_K_BLOCK = 256


@dataclass(frozen=True)
class AffineRows:
    """Rows of weights ``scales * q + biases``.

    Attributes:
        q: (rows, columns), uint8.
        scales: (rows, groups), float32.
        biases: Likewise.
    """

    q: Array
    scales: Array
    biases: Array


def unpack_blocks(rows: Array, type_name: str) -> AffineRows:
    """Rows of blocks, uint8 as a GGUF source gives them, taken apart; nothing is rounded.

    Args:
        rows: (rows, bytes).
        type_name: Of :data:`AFFINE_BITS`.
    """
    n_rows = len(rows)
    if type_name.endswith("_K"):
        q, scales, biases = _unpack_k(rows, high=type_name == "Q5_K")
        return AffineRows(q.reshape(n_rows, -1), scales.reshape(n_rows, -1), biases.reshape(n_rows, -1))
    with_minimum, bits = type_name.endswith("_1"), AFFINE_BITS[type_name]
    size = 2 + 2 * with_minimum + GROUP * bits // 8
    blocks = rows.reshape(-1, size)
    scales = _halves(blocks[:, 0:2])
    biases = _halves(blocks[:, 2:4]) if with_minimum else scales * np.float32(-_MIDDLE[type_name])
    data = blocks[:, 2 + 2 * with_minimum :]
    if bits == 8:
        q = data ^ np.uint8(0x80)  # from -128…127 to 0…255
    else:
        nibbles = data[:, -16:]
        q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
        if bits == 5:
            q |= np.unpackbits(np.ascontiguousarray(data[:, :4]), axis=1, bitorder="little") << 4
    return AffineRows(q.reshape(n_rows, -1), scales.reshape(n_rows, -1), biases.reshape(n_rows, -1))


def _unpack_k(rows: Array, *, high: bool) -> tuple[Array, Array, Array]:
    """Q4_K and Q5_K: blocks of eight groups; (blocks, 8, 32) and twice (blocks, 8)."""
    blocks = rows.reshape(-1, 144 + 32 * high)
    d, d_minimum = _halves(blocks[:, 0:2]), _halves(blocks[:, 2:4])
    low, middle, top = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (top & 15) | (low >> 6) << 4], axis=1)
    minimums = np.concatenate([middle & 63, (top >> 4) | (middle >> 6) << 4], axis=1)
    nibbles = blocks[:, -128:].reshape(-1, 4, 1, 32)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, 32)
    if high:
        q |= ((blocks[:, 16:48, None].swapaxes(1, 2) >> np.arange(8, dtype=np.uint8)[:, None]) & 1) << 4
    return q, d * scales.astype(np.float32), -(d_minimum * minimums.astype(np.float32))


def pack_blocks(rows: AffineRows, type_name: str) -> Array:
    """The reverse for types of 32 weights; scales and biases must be those of :func:`exact_type`'s answer.

    Returns:
        (rows, bytes), uint8.
    """
    n_rows, bits = len(rows.q), AFFINE_BITS[type_name]
    q = rows.q.reshape(-1, GROUP)
    parts = [_bytes(rows.scales)]
    if type_name.endswith("_1"):
        parts.append(_bytes(rows.biases))
    if bits == 8:
        parts.append(q ^ np.uint8(0x80))
    else:
        if bits == 5:
            parts.append(np.packbits(q >> 4, axis=1, bitorder="little"))
        parts.append((q[:, :16] & 15) | (q[:, 16:] & 15) << 4)
    return np.concatenate(parts, axis=1).reshape(n_rows, -1)


def exact_types(scales: Array, biases: Array, bits: int) -> frozenset[str]:
    """The types that hold ``scales * q + biases`` exactly, for every q of ``bits`` bits; empty where none does.

    Args:
        scales: float32.
        biases: Likewise.
        bits: 2 to 8.
    """
    width = next((wider for wider in (4, 5, 8) if wider >= bits), 0)
    found = set()
    for name, own in AFFINE_BITS.items():
        if own != width or name.endswith("_K") or not _fits_half(scales):
            continue
        if name.endswith("_1"):
            holds = _fits_half(biases)
        else:
            # Fewer bits would need another middle, and the types have one.
            holds = np.array_equal(biases, scales * np.float32(-_MIDDLE[name]))
        if holds:
            found.add(name)
    return frozenset(found)


def pack_words(q: Array, bits: int) -> Array:
    """Whole numbers of some bits one after the other in 32-bit words, as MLX keeps them.

    Args:
        q: (rows, columns), uint8; a row fills whole words.
        bits: 2 to 8.

    Returns:
        (rows, columns * bits / 32), uint32.
    """
    if bits == 8:
        return np.ascontiguousarray(q).view("<u4")
    if bits == 4:
        return np.ascontiguousarray(q[:, 0::2] | q[:, 1::2] << 4).view("<u4")
    single = np.unpackbits(q[..., None], axis=2, bitorder="little")[..., :bits]
    return np.packbits(single.reshape(len(q), -1), axis=1, bitorder="little").view("<u4")


def _halves(raw: Array) -> Array:
    """Two bytes each as float32, (blocks, 1)."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _bytes(values: Array) -> Array:
    return np.ascontiguousarray(values.reshape(-1, 1).astype("<f2")).view(np.uint8)


def _fits_half(values: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))
