"""A directory of safetensors checked before it is loaded: its ``config.json`` and the headers of its weights."""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line

_HEADER_MAX = 100 << 20  # bytes, the limit of the safetensors format itself
_CONFIG_MAX = 16 << 20
# Bits of an element, by the name of its type.
DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
        **dict.fromkeys(("U32", "I32", "F32"), 32),
        **dict.fromkeys(("U64", "I64", "F64"), 64),
    }
)
_DTYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", re.ASCII)


@dataclass(frozen=True)
class SafeTensor:
    """One tensor of a safetensors file.

    Attributes:
        name: As the file names it.
        dtype: ``BF16``, ``F32``, ``U32``, …
        shape: Its dimensions; MLX packs several quantized weights into one element of ``U32``.
        offset: Where its data starts, in bytes from the start of the file.
        n_bytes: Its bytes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


def read_model_config(path: Path) -> dict[str, Any]:
    """The settings in a model's ``config.json``.

    Raises:
        InvalidModelError: It is none.
    """
    try:
        if path.stat().st_size > _CONFIG_MAX:
            raise InvalidModelError("config.json is too large to be one.")
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidModelError("config.json is not valid JSON.", "Pull the model again.") from error
    if not isinstance(config, dict):
        raise InvalidModelError("config.json holds no settings.", "Pull the model again.")
    return config


def read_safetensors_header(path: Path) -> list[SafeTensor]:
    """The tensors of a safetensors file; their offsets are checked, their data is not read.

    The format: a little-endian u64 length, that many bytes of JSON, then the data.

    Returns:
        The tensors, in the order of their data.

    Raises:
        InvalidModelError: The file is damaged: cut short, or tensors lie over each other or past its end.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        if len(head) < 8 or not 2 <= (length := struct.unpack("<Q", head)[0]) <= min(_HEADER_MAX, size - 8):
            raise _damaged(path, "its header is cut short or too large")
        raw = handle.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        tensors = [_tensor(name, entry, 8 + length) for name, entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header is not valid") from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset < end:
            raise _damaged(path, f"the tensor {one_line(tensor.name, 80)!r} lies over another")
        end = tensor.offset + tensor.n_bytes
        if end > size:
            raise _damaged(path, f"{end - size} of its {end} bytes are missing")
    return tensors


def _tensor(name: str, entry: dict[str, Any], data_start: int) -> SafeTensor:
    """One entry of the header.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    tensor = SafeTensor(name, dtype, shape, data_start + begin, end - begin)
    bits = DTYPE_BITS.get(dtype)
    if (
        not all(isinstance(number, int) and number >= 0 for number in (begin, end, *shape))
        or not _DTYPE.fullmatch(dtype)
        or tensor.n_bytes < 0
        or (bits is not None and tensor.n_elements * bits != 8 * tensor.n_bytes)
    ):
        raise ValueError(name)
    return tensor


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different: of a tensor that is there twice, one would vanish."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _damaged(path: Path, what: str) -> InvalidModelError:
    return InvalidModelError(f"{one_line(path.name, 80)} is damaged: {what}.", "Pull the model again.")
