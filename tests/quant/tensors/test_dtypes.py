"""Weights from one type into another, against gguf-py and MLX."""

import gguf
import numpy as np
import pytest

from localllm.errors import InvalidModelError
from quant.tensors.dtypes import from_float32, recode, to_float32

RANDOM = np.random.default_rng(0)
VALUES = (RANDOM.normal(0, 1, (7, 64)) * 10.0 ** RANDOM.integers(-8, 4, (7, 64))).astype(np.float32)
ODD = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 1.00390625]], np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_the_bytes_are_those_of_gguf_py(kind):
    expected = gguf.quants.quantize(VALUES, gguf.GGMLQuantizationType[kind])
    assert from_float32(VALUES, kind).tobytes() == expected.tobytes()


def test_bfloat16_of_odd_values():
    expected = gguf.quants.quantize(ODD, gguf.GGMLQuantizationType.BF16)
    assert from_float32(ODD, "BF16").tobytes() == expected.tobytes()
    assert np.array_equal(to_float32(from_float32(ODD, "BF16"), "BF16")[0, :4], ODD[0, :4])


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_comes_back_as_it_was(kind):
    rows = from_float32(VALUES, kind)
    assert from_float32(to_float32(rows, kind), kind).tobytes() == rows.tobytes()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"])
def test_packed_types_are_unpacked_as_gguf_py_does(kind):
    own = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(VALUES, own)
    rows = packed.view(np.uint16) if kind == "BF16" else packed
    assert np.array_equal(to_float32(rows, kind), gguf.quants.dequantize(packed, own))


def test_nothing_is_copied_where_nothing_changes():
    assert recode(VALUES, "F32", "F32") is VALUES


def test_a_shift_is_added():
    assert np.array_equal(recode(VALUES, "F32", "F32", 1.0), VALUES + 1)


def test_values_past_f16_are_refused_rather_than_made_infinite():
    with pytest.raises(InvalidModelError, match="65504"):
        from_float32(np.full((1, 4), 1e6, np.float32), "F16")


@pytest.mark.parametrize("kind", ["I32", "U8", "NEVER"])
def test_what_holds_no_weights_is_refused_by_name(kind):
    with pytest.raises(InvalidModelError, match=kind):
        to_float32(np.zeros((1, 4), np.uint8), kind)
