"""Importance matrices in the form that llama.cpp wrote before GGUF (``imatrix.dat``); read only.

int32 n; n times: int32 length, name, int32 calls, int32 n_values, float32 values (mean squares times calls); then,
unless the file ends: int32 chunks, int32 length, name of the text. Little-endian.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError

_MAX_ENTRIES = 1 << 18
_MAX_NAME = 4096
_MAX_BYTES = 1 << 32

Array = np.ndarray[Any, np.dtype[Any]]


class _Reader:
    def __init__(self, path: Path) -> None:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidModelError(f"{path.name} is too large for an importance matrix.")
        self._data = path.read_bytes()
        self._label = path.name
        self.position = 0

    @property
    def at_end(self) -> bool:
        return self.position >= len(self._data)

    def integer(self, most: int) -> int:
        (value,) = struct.unpack("<i", self.take(4))
        if not 0 <= value <= most:
            raise InvalidModelError(f"{self._label} is no importance matrix.", "It is damaged, or of another kind.")
        return int(value)

    def take(self, n_bytes: int) -> bytes:
        end = self.position + n_bytes
        if end > len(self._data):
            raise InvalidModelError(f"{self._label} is no importance matrix, or cut short.")
        taken = self._data[self.position : end]
        self.position = end
        return taken


def read_legacy(path: Path) -> tuple[dict[str, tuple[Array, int]], int, str]:
    """Read the old form.

    Returns:
        By weight name (sums, calls), where sums / calls are the mean squared inputs, float32 of shape (n_values,); the
        number of chunks; the name of the text.

    Raises:
        InvalidModelError: It is something else, or damaged.
    """
    reader = _Reader(path)
    entries: dict[str, tuple[Array, int]] = {}
    for _ in range(reader.integer(_MAX_ENTRIES)):
        name = reader.take(reader.integer(_MAX_NAME)).decode("utf-8", errors="replace")
        calls = reader.integer(1 << 30)
        values = np.frombuffer(reader.take(4 * reader.integer(1 << 28)), np.float32)
        entries[name] = (values, max(calls, 1))
    if not entries:
        raise InvalidModelError(f"{path.name} is no importance matrix: it has no entries.")
    if reader.at_end:
        return entries, 0, ""
    n_chunks = reader.integer(1 << 30)
    dataset = "" if reader.at_end else reader.take(reader.integer(_MAX_NAME)).decode("utf-8", errors="replace")
    return entries, n_chunks, dataset
