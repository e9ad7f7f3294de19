"""What must hold of any bytes whatever that are given to the GGUF validator."""

import os
import time
from itertools import pairwise
from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.gguf_header import GGUFHeader, read_gguf_header
from localllm.memory import MachineMemory, fit
from localllm.sanitize import printable
from tests.fuzz.ggml_reader import GGMLReader

MAX_SECONDS = 2.0  # for inputs of kilobytes, instrumented, on a busy machine; a quiet one needs a millisecond
_HOLE = 1 << 20
_MACHINE = MachineMemory(total=8 << 30, available=6 << 30, budget=5 << 30)


def check_gguf(content: bytes, path: Path, ggml: GGMLReader) -> bool:
    """Read ``content`` as a model file, and again as the beginning of a longer one.

    Args:
        content: The file.
        path: Where to write it.
        ggml: Reads what was accepted, and must survive it.

    Returns:
        Whether it was accepted, one way or the other.

    Raises:
        AssertionError: A promise of the validator does not hold.
        Exception: The validator failed, which it must never do.
    """
    path.write_bytes(content)
    header = _read(path)
    if header is None and content[:4] == b"GGUF":
        # Mutated offsets and sizes almost never fit a file of some hundred bytes: a hole of zeros lets more of them in.
        os.truncate(path, len(content) + _HOLE)
        header = _read(path)
    if header is None:
        return False
    _check_header(header)
    # ggml may be stricter (it wants tensors without gaps), but it must not read something else.
    assert ggml.n_tensors(path) in {None, len(header.tensors)}
    return True


def _read(path: Path) -> GGUFHeader | None:
    started = time.perf_counter()
    message, header = "", None
    try:
        header = read_gguf_header(path)
    except InvalidModelError as error:
        message = error.message
    seconds = time.perf_counter() - started
    assert seconds < MAX_SECONDS, f"it took {seconds:.1f} s"
    assert message == printable(message), "a message could write to the terminal"
    assert "\n" not in message
    return header


def _check_header(header: GGUFHeader) -> None:
    """What is said about an accepted file, and what everything else relies on."""
    assert header.alignment >= 8
    for tensor in header.tensors:
        assert tensor.n_elements > 0
        assert tensor.n_bytes > 0
        assert tensor.offset % header.alignment == 0
        assert tensor.offset + tensor.n_bytes <= header.file_size
    for tensor, following in pairwise(sorted(header.tensors, key=lambda tensor: tensor.offset)):
        assert tensor.offset + tensor.n_bytes <= following.offset
    assert header.n_parameters <= 8 * header.file_size  # no type has less than a bit for a weight
    assert min(header.n_ctx_train, header.n_layer, header.n_embd, header.n_vocab) >= 0
    assert isinstance(header.quantization, str)
    assert isinstance(header.architecture, str)
    assert header.chat_template is None or isinstance(header.chat_template, str)
    choice = fit(header, _MACHINE)
    assert not choice.fits or choice.need.total <= _MACHINE.budget
    assert choice.reason == printable(choice.reason)
