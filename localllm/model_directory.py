"""A directory of safetensors checked before it is loaded: its ``config.json`` and the headers of its weights."""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError

_HEADER_MAX = 100 << 20  # bytes, the limit of the safetensors format itself
_CONFIG_MAX = 16 << 20
_DTYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", re.ASCII)


@dataclass(frozen=True)
class SafeTensor:
    """One tensor of a safetensors file.

    Attributes:
        name: As the file names it.
        dtype: ``BF16``, ``F32``, ``U32``, …
        n_elements: Its elements; MLX packs several quantized weights into one of ``U32``.
        n_bytes: Its bytes in the file.
    """

    name: str
    dtype: str
    n_elements: int
    n_bytes: int


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

    Raises:
        InvalidModelError: The file is damaged.
    """
    invalid = InvalidModelError(f"{path.name} is damaged.", "Pull the model again.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        if len(head) < 8 or not 2 <= (length := struct.unpack("<Q", head)[0]) <= min(_HEADER_MAX, size - 8):
            raise invalid
        try:
            header = json.loads(handle.read(length))
            tensors = []
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                dtype, shape = entry["dtype"], entry["shape"]
                if (
                    not (0 <= begin <= end <= size - 8 - length)
                    or not _DTYPE.fullmatch(dtype)
                    or min(shape, default=0) < 0
                ):
                    raise invalid
                tensors.append(SafeTensor(name, dtype, math.prod(shape), end - begin))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise invalid from error
    return tensors
