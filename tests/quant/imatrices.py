"""Importance matrices made up for tests."""

from pathlib import Path

import numpy as np

from localllm.gguf_header import read_gguf_header
from quant.imatrix.file import ImatrixEntry, ImportanceMatrix, write_imatrix


def made_up_imatrix(model: Path, target: Path, *, seed: int = 0, leave_out: str = "no such tensor") -> Path:
    """Write an importance matrix with random statistics for every matrix of ``model``'s blocks."""
    rng = np.random.default_rng(seed)
    entries = {}
    for tensor in read_gguf_header(model).tensors:
        if len(tensor.shape) < 2 or not tensor.name.startswith("blk.") or leave_out in tensor.name:
            continue
        n_counts = tensor.shape[2] if len(tensor.shape) > 2 else 1
        sums = rng.uniform(0.5, 40.0, (n_counts, tensor.shape[0])).astype(np.float32)
        entries[tensor.name] = ImatrixEntry(sums, np.full(n_counts, 64, np.int64))
    write_imatrix(target, ImportanceMatrix(entries, ("made-up.txt",), 2, 32))
    return target
