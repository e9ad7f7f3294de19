"""The importance matrix and its file, in llama.cpp's GGUF form.

The form: ``general.type = "imatrix"``, ``imatrix.datasets``, ``imatrix.chunk_count``, ``imatrix.chunk_size``; for each
weight NAME the tensors ``NAME.in_sum2`` (F32, shape (n_counts, n_in)) and ``NAME.counts`` (F32, shape (n_counts, 1)).
n_counts is the number of experts for stacked experts, else 1. Files of the form before it (``.dat``) can be read.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from localllm.errors import InvalidModelError, QuantizeError
from localllm.gguf_header import GGUFHeader, LargeValue, TensorInfo, read_gguf_header
from quant.imatrix.legacy import read_legacy
from quant.tensors.gguf_writer import write_gguf
from quant.tensors.rows import array_tensor

if TYPE_CHECKING:
    from quant.tensors.metadata import MetadataValue

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_DATASETS = 1024

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ImatrixEntry:
    """The statistics of one weight matrix, or of one stack of experts.

    Attributes:
        sums: Sums of squared inputs, float32 of shape (n_counts, n_in).
        counts: Tokens (for experts: tokens routed to each) that were summed, int64 of shape (n_counts,).
    """

    sums: Array
    counts: Array

    def weights(self) -> Array:
        """Mean squared inputs, float32 of shape (n_counts * n_in,); 1 for experts that no token reached."""
        counts = self.counts.astype(np.float32)[:, None]
        means = np.where(counts > 0, self.sums / np.maximum(counts, 1), np.float32(1))
        return np.ascontiguousarray(means, np.float32).reshape(-1)


@dataclass(frozen=True)
class ImportanceMatrix:
    """Statistics by weight name.

    Attributes:
        entries: By the weight's name in GGUF (``blk.0.attn_q.weight``).
        datasets: What it was measured on.
        chunk_count: Chunks of text.
        chunk_size: Tokens in one.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def weights(self) -> dict[str, Array]:
        """What ``llama_model_quantize`` takes: by name, float32 of length n_in * n_experts."""
        return {name: entry.weights() for name, entry in self.entries.items()}


def combine(matrices: Sequence[ImportanceMatrix]) -> ImportanceMatrix:
    """The importance matrix of all texts together: sums and counts are added.

    Raises:
        QuantizeError: They are of different models.
    """
    entries: dict[str, ImatrixEntry] = {}
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            known = entries.get(name)
            if known is None:
                entries[name] = entry
            elif known.sums.shape != entry.sums.shape:
                raise QuantizeError(
                    f"The importance matrices are of different models: {name} has {known.sums.shape} and "
                    f"{entry.sums.shape} inputs."
                )
            else:
                entries[name] = ImatrixEntry(known.sums + entry.sums, known.counts + entry.counts)
    chunk_size = matrices[0].chunk_size
    most = max((int(entry.counts.max()) for entry in entries.values()), default=0)
    datasets = tuple(dataset for matrix in matrices for dataset in matrix.datasets)
    return ImportanceMatrix(entries, datasets, most // max(chunk_size, 1), chunk_size)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix, in GGUF or in the form before it.

    Raises:
        InvalidModelError: It is neither, or damaged, or has numbers that are not finite.
    """
    try:
        with path.open("rb") as handle:
            is_gguf = handle.read(4) == b"GGUF"
        matrix = _read_gguf(path) if is_gguf else _from_legacy(path)
    except OSError as error:
        raise InvalidModelError(f"The importance matrix {path.name} cannot be read: {error.strerror}.") from error
    for name, entry in matrix.entries.items():
        if not (np.isfinite(entry.sums).all() and (entry.sums >= 0).all() and (entry.counts >= 0).all()):
            raise InvalidModelError(f"The importance matrix {path.name} has impossible numbers for {name}.")
    return matrix


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write the GGUF form, whole or not at all; byte for byte what llama-imatrix writes.

    Raises:
        DiskFullError: There is no room; ``path`` is as it was.
    """
    metadata: dict[str, MetadataValue] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(matrix.datasets) or [""],  # llama-quantize wants the key
        "imatrix.chunk_count": matrix.chunk_count,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    tensors = []
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        n_counts = len(entry.counts)
        # ggml leaves out the last dimensions where they are 1.
        shape = (n_counts, -1) if n_counts > 1 else (-1,)
        tensors.append(array_tensor(name + _SUMS, entry.sums.reshape(shape)))
        tensors.append(array_tensor(name + _COUNTS, entry.counts[:, None] if n_counts > 1 else entry.counts))
    write_gguf(path, metadata, tensors, on_tensor=lambda _name, _n_bytes: None)


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_gguf_header(path, model=False)
    if header.metadata.get("general.type") != "imatrix":
        raise InvalidModelError(f"{path.name} is no importance matrix.", "It is a GGUF file of another kind.")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    entries: dict[str, ImatrixEntry] = {}
    with path.open("rb") as handle:
        for name in tensors:
            if not name.endswith(_SUMS):
                continue
            weight = name.removesuffix(_SUMS)
            counts = tensors.get(weight + _COUNTS)
            if counts is None or tensors[name].n_elements % counts.n_elements:
                raise InvalidModelError(f"The importance matrix {path.name} is damaged at {weight}.")
            sums = _floats(handle, tensors[name], path).reshape(counts.n_elements, -1)
            entries[weight] = ImatrixEntry(sums, np.rint(_floats(handle, counts, path)).astype(np.int64))
    if not entries:
        raise InvalidModelError(f"The importance matrix {path.name} is empty.")
    chunk_count, chunk_size = header.number("imatrix.chunk_count"), header.number("imatrix.chunk_size")
    return ImportanceMatrix(entries, _datasets(path, header), chunk_count, chunk_size)


def _floats(handle: Any, tensor: TensorInfo, path: Path) -> Array:
    if tensor.type_name != "F32":
        raise InvalidModelError(f"The importance matrix {path.name} holds {tensor.type_name} where F32 must be.")
    handle.seek(tensor.offset)
    return np.frombuffer(handle.read(tensor.n_bytes), np.float32)


def _datasets(path: Path, header: GGUFHeader) -> tuple[str, ...]:
    value = header.metadata.get("imatrix.datasets")
    if not isinstance(value, LargeValue) or value.type_name != "string[]":
        return ()
    names = []
    with path.open("rb") as handle:
        handle.seek(value.position)
        for _ in range(min(value.length, _MAX_DATASETS)):
            (length,) = struct.unpack("<Q", handle.read(8))  # checked by read_gguf_header, which stepped over it
            names.append(handle.read(length).decode("utf-8", errors="replace"))
    return tuple(name for name in names if name)


def _from_legacy(path: Path) -> ImportanceMatrix:
    means, n_chunks, dataset = read_legacy(path)
    entries = {
        name: ImatrixEntry(values[None, :], np.array([calls], np.int64)) for name, (values, calls) in means.items()
    }
    # The form does not say how many tokens a chunk has: a chunk counts as one, so that means come out right.
    return ImportanceMatrix(entries, (dataset,) if dataset else (), n_chunks, 1)
