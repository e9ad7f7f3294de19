"""What every file of tensors looks like to the rest: names, types, shapes, and rows read from the disk."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from localllm.errors import InvalidModelError
from localllm.gguf_types import TENSOR_TYPES
from localllm.sanitize import one_line

Array = np.ndarray[Any, np.dtype[Any]]

# How numpy holds an element of a plain type; BF16, which it lacks, is held as its 16 bits.
PLAIN: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "<u1",
}
_BLOCKS = {kind.name: kind for kind in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file, or one to be written.

    Attributes:
        name: As the file names it.
        type_name: ``F32``, ``F16``, ``BF16``, ``Q4_K``, ….
        shape: In numpy's order: the last is the length of a row. (GGUF counts the other way.)
    """

    name: str
    type_name: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def is_packed(self) -> bool:
        """Whether several weights make one block of bytes, as in ``Q4_K``."""
        return self.type_name not in PLAIN

    @property
    def n_rows(self) -> int:
        """Rows when all dimensions but the last are one. A plain vector is a column: each element is a row."""
        if len(self.shape) == 1 and not self.is_packed:
            return self.shape[0]
        return math.prod(self.shape[:-1])

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.n_elements // self.n_rows if self.n_rows else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row.

        Raises:
            InvalidModelError: The type is unknown, or its blocks do not fit into a row.
        """
        if not self.is_packed:
            return self.n_columns * np.dtype(PLAIN[self.type_name]).itemsize
        block = _BLOCKS.get(self.type_name)
        if block is None:
            raise InvalidModelError(
                f"The tensor {one_line(self.name, 80)!r} is of the type {one_line(self.type_name, 40)}, "
                "which is not supported.",
                "Convert the model from F32, F16 or BF16.",
            )
        if self.n_columns % block.block:
            raise InvalidModelError(
                f"The tensor {one_line(self.name, 80)!r} has rows of {self.n_columns}, "
                f"which {self.type_name} cannot hold."
            )
        return self.n_columns // block.block * block.n_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return self.n_rows * self.row_bytes


class TensorSource(Protocol):
    """Tensors that can be read by rows."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of a tensor, in its own type.

        Returns:
            Shape (rows, columns), of the numpy type in :data:`PLAIN`; for a packed type (rows, bytes of a row), uint8.
            It may be overwritten by the next call.

        Raises:
            InvalidModelError: The file has been cut short meanwhile.
        """


class RowReader:
    """Reads rows of tensors from one open file into a buffer that it reuses.

    Not a memory map: its pages would count as this process's memory, and a file that shrinks meanwhile would end the
    process (SIGBUS).

    Args:
        path: Opened at once; :meth:`close` it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: BinaryIO = path.open("rb", buffering=0)
        self._buffer = bytearray()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def rows(self, tensor: TensorInfo, offset: int, start: int, stop: int) -> Array:
        """See :meth:`TensorSource.read_rows`; ``offset`` is where the tensor starts in the file, in bytes."""
        row_bytes = tensor.row_bytes
        n_bytes = (stop - start) * row_bytes
        if len(self._buffer) < n_bytes:
            self._buffer = bytearray(n_bytes)
        view = memoryview(self._buffer)[:n_bytes]
        self._handle.seek(offset + start * row_bytes)
        done = 0
        while done < n_bytes:
            read = self._handle.readinto(view[done:])  # type: ignore[attr-defined]  # a raw file has it
            if not read:
                raise InvalidModelError(
                    f"{one_line(self._path.name, 80)} was cut short while it was read.", "Pull the model again."
                )
            done += read
        dtype = np.dtype(np.uint8 if tensor.is_packed else PLAIN[tensor.type_name])
        return np.frombuffer(view, dtype).reshape(stop - start, row_bytes // dtype.itemsize)
