"""A copy of a GGUF model with other weights or metadata, unpacked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_FILE_TYPES = {"f32": 0, "f16": 1}


def rewrite(
    source: Path,
    target: Path,
    weights: Callable[[str, Array], Array],
    *,
    metadata: Callable[[str, Any], Any] = lambda _, value: value,
    tensor_type: str = "f16",
) -> None:
    """Write ``source`` anew.

    Args:
        source: Any GGUF model in one file.
        target: The copy.
        weights: Takes the name of a tensor and its values, float32 in numpy's order (rows, columns); returns others.
        metadata: Takes a key and its value; returns the value of the copy.
        tensor_type: Of matrices, ``f16`` or ``f32``; the rest is F32.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = _FILE_TYPES[tensor_type] if key == "general.file_type" else metadata(key, entry.contents())
        kind = entry.types[0]
        writer.add_key_value(key, value, kind, entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        new = weights(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        narrow = new.ndim > 1 and tensor_type == "f16"
        writer.add_tensor(tensor.name, new.astype(np.float16) if narrow else new)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
