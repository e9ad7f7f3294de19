"""llama.cpp's blocks against MLX's groups: the same weights to the last bit, and the same blocks again."""

import gguf
import mlx.core as mx
import numpy as np
import pytest

from quant.tensors.affine import AFFINE_BITS, exact_types, pack_blocks, pack_words, unpack_blocks
from quant.tensors.mlx_packed import unpack_words

SIZES = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}


def random_blocks(name, n_rows=6, columns=512):
    """Every bit of the data random, the scales halves of usual size."""
    random = np.random.default_rng(0)
    block, size = SIZES[name]
    rows = random.integers(0, 256, (n_rows * columns // block, size), np.uint8)
    n_scales = 1 if name in ("Q4_0", "Q5_0", "Q8_0") else 2
    scales = random.normal(0, 0.02, (len(rows), n_scales)).astype(np.float16)
    rows[:, : 2 * n_scales] = scales.view(np.uint8)
    return rows.reshape(n_rows, -1)


@pytest.mark.parametrize("name", AFFINE_BITS)
def test_mlx_unpacks_to_the_same_bits_as_gguf(name):
    blocks = random_blocks(name)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    rows, bits = unpack_blocks(blocks, name), AFFINE_BITS[name]
    parts = [mx.array(part) for part in (pack_words(rows.q, bits), rows.scales, rows.biases)]
    found = np.array(mx.dequantize(*parts, group_size=32, bits=bits, stream=mx.cpu))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", [name for name in AFFINE_BITS if not name.endswith("_K")])
def test_the_same_blocks_again(name):
    blocks = random_blocks(name)
    rows = unpack_blocks(blocks, name)
    assert name in exact_types(rows.scales, rows.biases, AFFINE_BITS[name])
    assert np.array_equal(pack_blocks(rows, name), blocks)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_words_there_and_back(bits):
    q = np.random.default_rng(1).integers(0, 1 << bits, (3, 256), np.uint8)
    assert np.array_equal(unpack_words(pack_words(q, bits), bits), q)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_what_halves_do_not_hold_is_not_exact(bits):
    scale, bias = np.float32([[0.5]]), np.float32([[-0.25]])
    assert exact_types(scale, bias, bits) == ({"Q4_1"} if bits <= 4 else {"Q5_1"} if bits == 5 else set())
    assert exact_types(scale * np.float32(1.0001), bias, bits) == set()
    assert exact_types(scale * 200_000, bias, bits) == set()
