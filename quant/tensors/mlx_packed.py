"""MLX's packed weights seen as ordinary ones: ``weight`` in 32-bit words, ``scales`` and ``biases`` beside it.

A weight is ``scale * q + bias`` with one scale and bias for each group of a row
(https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html); ``q`` has 2-8 bits, one after
the other from the lowest of the row's first word on.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.tensors.dtypes import to_float32
from quant.tensors.source import Array, TensorInfo, TensorSource

_BITS = (2, 3, 4, 5, 6, 8)


class UnpackedMLX:
    """The tensors of an MLX directory with each packed one as F32.

    Args:
        source: The files as they are.
        quantization: ``quantization`` in config.json: ``group_size``, ``bits``, and the same by module where they
            differ.

    Attributes:
        layout: Bits and group size of the packed tensors, by name.

    Raises:
        InvalidModelError: The weights are packed in another way.
    """

    def __init__(self, source: TensorSource, quantization: Mapping[str, Any]) -> None:
        self._source = source
        self.layout: dict[str, tuple[int, int]] = {}
        tensors = dict(source.tensors)
        for scales in [name for name in tensors if name.endswith(".scales")]:
            module = scales.removesuffix(".scales")
            weight = tensors.get(f"{module}.weight")
            if weight is None or weight.type_name != "U32":
                continue
            if f"{module}.biases" not in tensors or _mode(quantization, module) != "affine":
                raise InvalidModelError(
                    f"The weights of {one_line(module, 80)} are packed as {_mode(quantization, module)}, "
                    "which is not supported.",
                    "Convert the model from which it was quantized.",
                )
            group_size = _setting(quantization, module, "group_size")
            columns = tensors[scales].shape[-1] * group_size
            bits = weight.shape[-1] * 32 // max(1, columns)
            grouped = (*weight.shape[:-1], tensors[scales].shape[-1])
            fit = tensors[scales].shape == tensors[f"{module}.biases"].shape == grouped
            if bits not in _BITS or weight.shape[-1] * 32 != columns * bits or group_size <= 0 or not fit:
                raise InvalidModelError(f"The packed weights of {one_line(module, 80)} have impossible shapes.")
            self.layout[weight.name] = (bits, group_size)
            tensors[weight.name] = replace(weight, type_name="F32", shape=(*weight.shape[:-1], columns))
            del tensors[scales], tensors[f"{module}.biases"]
        self._tensors = tensors

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        return self._tensors

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """See :meth:`.source.TensorSource.read_rows`."""
        if name not in self.layout:
            return self._source.read_rows(name, start, stop)
        q, scales, biases = self.read_packed(name, start, stop)
        values = q.astype(np.float32)
        groups = values.reshape(stop - start, -1, self.layout[name][1])
        np.multiply(groups, scales[..., None], out=groups)
        np.add(groups, biases[..., None], out=groups)
        return values

    def read_packed(self, name: str, start: int, stop: int) -> tuple[Array, Array, Array]:
        """Rows of a packed tensor: whole numbers (rows, columns) uint8, and :meth:`read_scales`."""
        q = unpack_words(self._source.read_rows(name, start, stop), self.layout[name][0])
        # Copies: what is read next may overwrite both.
        return np.array(q), *self.read_scales(name, start, stop)

    def read_scales(self, name: str, start: int, stop: int) -> tuple[Array, Array]:
        """Scales and biases of rows of a packed tensor, (rows, groups), float32."""
        found = []
        for part in ("scales", "biases"):
            tensor = self._source.tensors[f"{name.removesuffix('.weight')}.{part}"]
            found.append(np.array(to_float32(self._source.read_rows(tensor.name, start, stop), tensor.type_name)))
        return found[0], found[1]


def unpack_words(words: Array, bits: int) -> Array:
    """The whole numbers in rows of 32-bit words.

    Returns:
        Shape (rows, words * 32 / bits), uint8.
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((raw[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(raw), -1)
    single = np.unpackbits(raw, axis=1, bitorder="little").reshape(len(raw), -1, bits)
    return np.packbits(single, axis=2, bitorder="little")[..., 0]


def _setting(quantization: Mapping[str, Any], module: str, key: str) -> int:
    own = quantization.get(module)
    value = own.get(key) if isinstance(own, Mapping) else None
    value = quantization.get(key) if value is None else value
    return value if isinstance(value, int) else 0


def _mode(quantization: Mapping[str, Any], module: str) -> str:
    own = quantization.get(module)
    mode = own.get("mode") if isinstance(own, Mapping) else None
    return str(mode or quantization.get("mode") or "affine")
