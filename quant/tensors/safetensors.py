"""Directories of safetensors: one file or many with an index, checked, read and written by rows.

The format: https://github.com/huggingface/safetensors#format.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from localllm.errors import InvalidModelError
from localllm.files import disk_full_as_error, write_atomic
from localllm.model_directory import SafeTensor, read_safetensors_header
from localllm.models.derive import is_safe_file_name
from localllm.sanitize import one_line
from quant.tensors.dtypes import to_float32
from quant.tensors.rows import OutTensor
from quant.tensors.source import Array, RowReader, TensorInfo
from quant.tensors.writing import OnTensor, write_chunks

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_INDEX_MAX = 64 << 20  # bytes
_PART = re.compile(r"-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_ALIGNMENT = 8


class SafetensorsSource:
    """The weights of a model directory. A context manager; its files are open while it is.

    Args:
        directory: With ``model.safetensors``, or ``model.safetensors.index.json`` and its shards.

    Raises:
        InvalidModelError: A file is missing, damaged, or another than the index says.
    """

    def __init__(self, directory: Path) -> None:
        self._stack = ExitStack()
        self._readers: dict[str, RowReader] = {}
        self._places: dict[str, tuple[str, SafeTensor]] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._directory = directory
        weight_map = _read_index(directory)
        for file in _shards(directory, weight_map):
            for tensor in read_safetensors_header(directory / file):
                self._add(file, tensor)
        for name, file in (weight_map or {}).items():
            if name not in self._places or self._places[name][0] != file:
                raise InvalidModelError(
                    f"{INDEX} promises the tensor {one_line(name, 80)!r} in {file}, which does not hold it.",
                    "Pull the model again.",
                )

    def __enter__(self) -> "SafetensorsSource":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        return self._tensors

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """See :meth:`.source.TensorSource.read_rows`."""
        file, tensor = self._places[name]
        if file not in self._readers:
            self._readers[file] = reader = RowReader(self._directory / file)
            self._stack.callback(reader.close)
        return self._readers[file].rows(self._tensors[name], tensor.offset, start, stop)

    def _add(self, file: str, tensor: SafeTensor) -> None:
        if tensor.name in self._places:
            raise InvalidModelError(
                f"The tensor {one_line(tensor.name, 80)!r} is both in {self._places[tensor.name][0]} and in {file}.",
                "Leave only the files of one model in the directory.",
            )
        self._places[tensor.name] = (file, tensor)
        self._tensors[tensor.name] = TensorInfo(tensor.name, tensor.dtype, tensor.shape or (1,))


def read_arrays(path: Path) -> dict[str, Array]:
    """Every tensor of a small file, whole, as float32.

    Raises:
        InvalidModelError: The file is missing or damaged, or a tensor is of a type that holds no weights.
    """
    try:
        tensors = read_safetensors_header(path)
    except FileNotFoundError as error:
        raise InvalidModelError(f"{path.name} is missing.") from error
    reader, found = RowReader(path), {}
    try:
        for tensor in tensors:
            info = TensorInfo(tensor.name, tensor.dtype, tensor.shape or (1,))
            rows = to_float32(reader.rows(info, tensor.offset, 0, info.n_rows), info.type_name)
            found[tensor.name] = np.array(rows).reshape(info.shape)  # a copy: the reader's buffer is used again
    finally:
        reader.close()
    return found


def _read_index(directory: Path) -> dict[str, str] | None:
    """Which file holds which tensor, as the index says; None without one."""
    path = directory / INDEX
    if not path.is_file():
        return None
    try:
        weight_map = dict(json.loads(path.read_bytes())["weight_map"]) if path.stat().st_size <= _INDEX_MAX else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(f"{INDEX} is damaged.", "Pull the model again.") from error
    if not weight_map or not all(isinstance(file, str) and is_safe_file_name(file) for file in weight_map.values()):
        raise InvalidModelError(
            f"{INDEX} is damaged: it names no files that can be a model's.", "Pull the model again."
        )
    return weight_map


def _shards(directory: Path, weight_map: dict[str, str] | None) -> list[str]:
    """The files to read.

    Raises:
        InvalidModelError: One is missing, or there is none.
    """
    there = {path.name for path in directory.glob("*.safetensors") if not path.name.startswith(("adapter", "consol"))}
    if weight_map is not None:
        wanted = set(weight_map.values())
    elif SINGLE in there:
        wanted = {SINGLE}
    else:
        wanted = set(there)
        for file in there:
            if match := _PART.search(file):
                prefix, count = file[: match.start()], match["count"]
                wanted |= {f"{prefix}-{part:05d}-of-{count}.safetensors" for part in range(1, int(count) + 1)}
    if not wanted:
        raise InvalidModelError(f"{directory.name} holds no weights.", "A model has *.safetensors beside config.json.")
    if missing := sorted(wanted - there):
        raise InvalidModelError(
            f"{len(missing)} of {len(wanted)} files of the model are missing, {missing[0]} first.",
            "Pull the model again.",
        )
    return sorted(wanted)


def write_safetensors(
    directory: Path, tensors: Sequence[OutTensor], *, shard_bytes: int, on_tensor: OnTensor
) -> tuple[Path, ...]:
    """Write a model's weights: one file, or shards and their index.

    The directory is a new one that nobody else knows yet: a failure leaves what has been written, for the caller to
    remove with the rest.

    Args:
        directory: Where to.
        tensors: Written one after the other.
        shard_bytes: The most data in one file, unless one tensor alone is larger.
        on_tensor: Told of each chunk written.

    Returns:
        The files of weights.

    Raises:
        DiskFullError: There is no room.
    """
    shards: list[list[OutTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.info.n_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.info.n_bytes
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{part:05d}-of-{count:05d}.safetensors" for part in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        with disk_full_as_error(directory / name), (directory / name).open("xb") as handle:
            _write_file(handle, shard, on_tensor)
    if count > 1:
        weight_map = {tensor.info.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.info.n_bytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomic(directory / INDEX, json.dumps(index, indent=2) + "\n")
    return tuple(directory / name for name in names)


def _write_file(handle: BinaryIO, tensors: Iterable[OutTensor], on_tensor: OnTensor) -> None:
    # The widest first: so each starts at a multiple of its own element's size, as readers that map the file like it.
    ordered = sorted(tensors, key=lambda tensor: tensor.info.row_bytes // max(1, tensor.info.n_columns), reverse=True)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        info = tensor.info
        header[info.name] = {
            "dtype": info.type_name,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.n_bytes],
        }
        offset += info.n_bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    handle.write(struct.pack("<Q", len(raw)) + raw)
    for tensor in ordered:
        write_chunks(handle, tensor, on_tensor)
