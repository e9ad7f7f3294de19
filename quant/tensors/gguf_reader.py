"""GGUF files, one or the parts of a split one: metadata in full, tensors by rows.

The header is checked by :mod:`localllm.gguf_header` before anything here reads it.
"""

import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO

from localllm.errors import InvalidModelError
from localllm.gguf_header import LargeValue, Value, read_gguf_header, read_gguf_parts
from localllm.gguf_types import NUMBERS, VALUE_NAMES
from localllm.models.derive import group_split_files, split_siblings
from localllm.sanitize import one_line
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import Array, RowReader, TensorInfo

_U64 = struct.Struct("<Q")


class GGUFSource:
    """A GGUF model. A context manager; its files are open while it is.

    Args:
        path: The file, or any part of a split one; the others must be beside it.

    Attributes:
        paths: All files, in order.
        metadata: Every key of the first file, the vocabulary included; those of the split itself are left out.

    Raises:
        InvalidModelError: A file is damaged, or a part is missing.
    """

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        self._readers: dict[str, RowReader] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self.paths = _parts(path)
        read_gguf_parts(self.paths)
        for part in self.paths:
            for tensor in read_gguf_header(part).tensors:
                if tensor.name in self._places:
                    raise InvalidModelError(f"The tensor {one_line(tensor.name, 80)!r} is in two parts of the model.")
                self._places[tensor.name] = (part, tensor.offset)
                shape = tuple(reversed(tensor.shape))
                self._tensors[tensor.name] = TensorInfo(tensor.name, tensor.type_name, shape)
        self.metadata: Mapping[str, MetadataValue] = MappingProxyType(read_metadata(self.paths[0]))

    def __enter__(self) -> "GGUFSource":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        return self._tensors

    @property
    def architecture(self) -> str:
        """What GGUF calls the architecture (``llama``, ``gemma3``)."""
        return str(self.metadata.get("general.architecture", ""))

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """See :meth:`.source.TensorSource.read_rows`."""
        path, offset = self._places[name]
        if path.name not in self._readers:
            self._readers[path.name] = reader = RowReader(path)
            self._stack.callback(reader.close)
        return self._readers[path.name].rows(self._tensors[name], offset, start, stop)


def read_metadata(path: Path) -> dict[str, MetadataValue]:
    """Every key of a GGUF file, with the arrays that :func:`read_gguf_header` steps over.

    Raises:
        InvalidModelError: The file is damaged.
    """
    header = read_gguf_header(path)
    with path.open("rb") as handle:
        content: dict[str, MetadataValue] = {}
        for key, value in header.metadata.items():
            if not key.startswith("split."):
                content[key] = _full(value, handle, path) if isinstance(value, LargeValue) else _plain(value)
    return content


def _plain(value: Value) -> MetadataValue:
    assert not isinstance(value, LargeValue)
    return list(value) if isinstance(value, tuple) else value


def _full(value: LargeValue, handle: BinaryIO, path: Path) -> MetadataValue:
    handle.seek(value.position)
    try:
        if value.type_name == "string":
            return handle.read(value.length).decode()
        if value.type_name == "string[]":
            return [handle.read(_U64.unpack(handle.read(8))[0]).decode() for _ in range(value.length)]
    except (UnicodeDecodeError, struct.error) as error:
        raise InvalidModelError(f"{one_line(path.name, 80)} is damaged: its vocabulary is not UTF-8.") from error
    layout = NUMBERS[VALUE_NAMES.index(value.type_name.removesuffix("[]"))]
    return [number for (number,) in layout.iter_unpack(handle.read(layout.size * value.length))]


def _parts(path: Path) -> tuple[Path, ...]:
    siblings = split_siblings(path.name, [other.name for other in path.parent.glob("*.gguf")])
    groups = group_split_files(siblings or [path.name])
    return tuple(path.parent / name for name in next(iter(groups.values())))
