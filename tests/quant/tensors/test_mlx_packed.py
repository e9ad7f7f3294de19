"""MLX's packed weights, against mlx's own unpacking."""

import mlx.core as mx
import numpy as np
import pytest

from localllm.errors import InvalidModelError
from quant.tensors.mlx_packed import UnpackedMLX
from quant.tensors.safetensors import SafetensorsSource


def write(directory, bits, group_size, shape=(6, 128), dtype=mx.float32, mode="affine"):
    mx.random.seed(0)
    parts = mx.quantize(mx.random.normal(shape, stream=mx.cpu), group_size, bits, mode=mode, stream=mx.cpu)
    names = ["m.weight", "m.scales", "m.biases"]
    arrays = {
        name: part if name == "m.weight" else part.astype(dtype) for name, part in zip(names, parts, strict=False)
    }
    if mode != "affine":
        arrays["m.scales"] = parts[1]
    mx.save_safetensors(str(directory / "model.safetensors"), arrays)
    if mode != "affine":
        return None
    return np.array(
        mx.dequantize(*(arrays[name] for name in names), group_size, bits, stream=mx.cpu).astype(mx.float32)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_every_width_is_unpacked_as_mlx_does(tmp_path, bits, group_size):
    expected = write(tmp_path, bits, group_size)
    with SafetensorsSource(tmp_path) as stored:
        source = UnpackedMLX(stored, {"bits": bits, "group_size": group_size})
        assert set(source.tensors) == {"m.weight"}
        assert source.tensors["m.weight"].shape == (6, 128)
        assert np.allclose(source.read_rows("m.weight", 2, 5), expected[2:5], rtol=1e-6, atol=1e-6)


def test_stacks_of_experts(tmp_path):
    expected = write(tmp_path, 4, 32, shape=(3, 6, 64))
    with SafetensorsSource(tmp_path) as stored:
        source = UnpackedMLX(stored, {"bits": 4, "group_size": 32})
        rows = source.read_rows("m.weight", 0, 18)
    assert np.allclose(rows.reshape(3, 6, 64), expected, rtol=1e-6, atol=1e-6)


def test_a_module_with_a_width_of_its_own(tmp_path):
    expected = write(tmp_path, 8, 64)
    with SafetensorsSource(tmp_path) as stored:
        own = {"bits": 4, "group_size": 32, "m": {"bits": 8, "group_size": 64}}
        assert np.allclose(UnpackedMLX(stored, own).read_rows("m.weight", 0, 6), expected, rtol=1e-6, atol=1e-6)


def test_other_ways_of_packing_are_refused_by_name(tmp_path):
    write(tmp_path, 4, 32, mode="mxfp4")
    with SafetensorsSource(tmp_path) as stored, pytest.raises(InvalidModelError, match="mxfp4"):
        UnpackedMLX(stored, {"bits": 4, "group_size": 32, "mode": "mxfp4"})


@pytest.mark.parametrize(("part", "kept"), [("scales", (3, 4)), ("biases", (6, 2)), ("biases", (3, 4))])
def test_scales_of_other_rows_or_groups_are_refused(tmp_path, part, kept):
    write(tmp_path, 4, 32)
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    arrays[f"m.{part}"] = arrays[f"m.{part}"][: kept[0], : kept[1]]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    with SafetensorsSource(tmp_path) as stored, pytest.raises(InvalidModelError, match="impossible shapes"):
        UnpackedMLX(stored, {"bits": 4, "group_size": 32})


def test_shapes_that_do_not_fit_the_settings_are_refused(tmp_path):
    write(tmp_path, 4, 32)
    with SafetensorsSource(tmp_path) as stored, pytest.raises(InvalidModelError, match="impossible shapes"):
        UnpackedMLX(stored, {"bits": 4, "group_size": 24})
