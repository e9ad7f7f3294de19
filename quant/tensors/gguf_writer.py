"""GGUF files written tensor by tensor, in one file or split as llama.cpp splits them.

gguf-py's writer is not used: it holds every tensor, or a lazy stand-in for it, until the end; here nothing is held but
the rows being written.
"""

import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from localllm.files import disk_full_as_error, sync_directory
from localllm.gguf_types import TENSOR_TYPES
from localllm.models.transfer import require_room
from localllm.paths import FILE_MODE
from quant.tensors.metadata import MetadataValue, encode_metadata
from quant.tensors.rows import OutTensor
from quant.tensors.writing import OnTensor, sync, write_chunks

_VERSION = 3
_ALIGNMENT = 32
_MAX_NAME = 63  # bytes; ggml keeps names in char[64]
_TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}


def write_gguf(
    target: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[OutTensor],
    *,
    split_bytes: int = 0,
    on_tensor: OnTensor,
) -> tuple[Path, ...]:
    """Write a GGUF model as a whole or not at all: under other names first, renamed when every byte is on the disk.

    Args:
        target: ``NAME.gguf``; of a split model the parts are ``NAME-00001-of-0000N.gguf`` beside it.
        metadata: Keys and values; of a split model all are in the first part.
        tensors: Written one after the other.
        split_bytes: The most tensor data in one part, unless one tensor alone is larger; 0 writes one file.
        on_tensor: Told of each chunk written; an exception from it leaves nothing.

    Returns:
        The files, the first part first.

    Raises:
        DiskFullError: There is no room; nothing is left.
    """
    parts = _parts(tensors, split_bytes)
    names = part_names(target, len(parts))
    require_room(target.parent, sum(tensor.info.n_bytes for tensor in tensors))
    with ExitStack() as on_failure:
        temporaries = []
        for number, part in enumerate(parts):
            own = dict(metadata) if number == 0 else {}
            if len(parts) > 1:
                own |= {"split.no": number, "split.count": len(parts), "split.tensors.count": len(tensors)}
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
            temporary = Path(name)
            on_failure.callback(temporary.unlink, missing_ok=True)
            temporaries.append(temporary)
            _write_part(descriptor, names[number], own, part, on_tensor)
            temporary.chmod(FILE_MODE)
        # The first part last: whoever looks for a model finds all of it.
        for temporary, path in reversed(list(zip(temporaries, names, strict=True))):
            temporary.replace(path)
        on_failure.pop_all()
    sync_directory(target.parent)
    return names


def part_names(target: Path, count: int) -> tuple[Path, ...]:
    """The files of a model in ``count`` parts."""
    if count == 1:
        return (target,)
    return tuple(target.with_name(f"{target.stem}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1))


def _parts(tensors: Sequence[OutTensor], split_bytes: int) -> list[list[OutTensor]]:
    parts: list[list[OutTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if split_bytes and parts[-1] and size + tensor.info.n_bytes > split_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.info.n_bytes
    return parts


def _write_part(
    descriptor: int,
    path: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[OutTensor],
    on_tensor: OnTensor,
) -> None:
    with disk_full_as_error(path), os.fdopen(descriptor, "wb") as handle:
        handle.write(_header(metadata, tensors))
        for tensor in tensors:
            done = write_chunks(handle, tensor, on_tensor)
            handle.write(bytes(-done % _ALIGNMENT))
        sync(handle)


def _header(metadata: Mapping[str, MetadataValue], tensors: Sequence[OutTensor]) -> bytes:
    pieces = [struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(metadata)), encode_metadata(metadata)]
    offset = 0
    for tensor in tensors:
        info, name = tensor.info, tensor.info.name.encode()
        assert len(name) <= _MAX_NAME, info.name
        shape = tuple(reversed(info.shape))
        pieces.append(struct.pack("<Q", len(name)) + name)
        pieces.append(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        pieces.append(struct.pack("<IQ", _TYPE_NUMBERS[info.type_name], offset))
        offset += -(-info.n_bytes // _ALIGNMENT) * _ALIGNMENT
    raw = b"".join(pieces)
    return raw + bytes(-len(raw) % _ALIGNMENT)
