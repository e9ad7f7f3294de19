"""What the writers of both formats share."""

import os
from collections.abc import Callable
from typing import BinaryIO

from quant.tensors.rows import OutTensor

# Told of every chunk: the tensor's name and the bytes just written. An exception from it stops the writing.
OnTensor = Callable[[str, int], None]


def write_chunks(handle: BinaryIO, tensor: OutTensor, on_tensor: OnTensor) -> int:
    """Write a tensor's data; returns its bytes."""
    done = 0
    for chunk in tensor.chunks():
        handle.write(chunk.data if chunk.flags.c_contiguous else chunk.tobytes())
        done += chunk.nbytes
        on_tensor(tensor.info.name, chunk.nbytes)
    assert done == tensor.info.n_bytes, f"{tensor.info.name}: {done} bytes instead of {tensor.info.n_bytes}"
    return done


def sync(handle: BinaryIO) -> None:
    """Make what was written durable."""
    handle.flush()
    os.fsync(handle.fileno())
