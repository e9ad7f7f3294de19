"""What two quantized files are compared by."""

import hashlib
import platform
from pathlib import Path

import pytest

from localllm.gguf_header import read_gguf_header


def tensor_digest(path: Path) -> str:
    """SHA-256 over names, types and bytes of all tensors, in the order of names."""
    digest = hashlib.sha256()
    data = path.read_bytes()
    for tensor in sorted(read_gguf_header(path).tensors, key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name} {tensor.type_name} {tensor.shape}\n".encode())
        digest.update(data[tensor.offset : tensor.offset + tensor.n_bytes])
    return digest.hexdigest()


def _same_arithmetic() -> bool:
    """Whether this processor multiplies and adds as the one on which the golden digests were made."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpuinfo.exists() and " fma " in cpuinfo.read_text()


needs_fma = pytest.mark.skipif(not _same_arithmetic(), reason="the digests were made with fused multiply-add on x86-64")
