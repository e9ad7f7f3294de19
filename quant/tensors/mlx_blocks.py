"""MLX's packed weights as llama.cpp's blocks, where those hold them exactly."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quant.tensors.affine import GROUP, AffineRows, exact_types, pack_blocks
from quant.tensors.mlx_packed import UnpackedMLX
from quant.tensors.source import Array, TensorInfo

# Types without a bias of their own are smaller.
_PREFERRED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_CHUNK = 1 << 20  # scales at once


class BlocksOfMLX:
    """The tensors of an MLX directory, each packed one as blocks where they are exact, else as F32.

    Args:
        source: The directory, unpacked.

    Attributes:
        inexact: Names of packed tensors that no type of blocks holds exactly.
    """

    def __init__(self, source: UnpackedMLX) -> None:
        self._source = source
        self.inexact: list[str] = []
        self._tensors = dict(source.tensors)
        for name, (bits, _) in source.layout.items():
            types = self._exact(name, bits)
            chosen = next((kind for kind in _PREFERRED if kind in types), "")
            if chosen:
                self._tensors[name] = replace(self._tensors[name], type_name=chosen)
            else:
                self.inexact.append(name)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        return self._tensors

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """See :meth:`.source.TensorSource.read_rows`."""
        tensor = self._tensors[name]
        if not tensor.is_packed:
            return self._source.read_rows(name, start, stop)
        _, group_size = self._source.layout[name]
        repeats = group_size // GROUP
        q, scales, biases = self._source.read_packed(name, start, stop)
        rows = AffineRows(q, np.repeat(scales, repeats, axis=1), np.repeat(biases, repeats, axis=1))
        return pack_blocks(rows, tensor.type_name)

    def _exact(self, name: str, bits: int) -> frozenset[str]:
        tensor = self._tensors[name]
        if self._source.layout[name][1] % GROUP:
            return frozenset()
        found = frozenset(_PREFERRED)
        step = max(1, _CHUNK // max(1, tensor.n_columns // GROUP))
        for start in range(0, tensor.n_rows, step):
            scales, biases = self._source.read_scales(name, start, min(start + step, tensor.n_rows))
            found &= exact_types(scales, biases, bits)
            if not found:
                break
        return found
