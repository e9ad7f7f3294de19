"""``llama_model_quantize`` through ctypes: options in, log lines out.

Imported in a child process only, which llama.cpp may end.
"""

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.llama_bindings import load_bindings

lib = load_bindings()
_OVERRIDE_INT, _OVERRIDE_STRING = 0, 3  # llama_model_kv_override_type
_MAX_STRING = 127  # bytes of an override's string, from llama.h
# Rows of one tensor that are in memory at once, in bytes; twice that while its buffers grow. llama.cpp's own bound is
# 8 GiB; less costs no time.
_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True)
class NativeImatrix:
    """An importance matrix as llama.cpp takes it, and what is said of it in the result.

    Attributes:
        path: The weights of all tensors, one after the other, as float32 in this machine's order.
        sizes: By tensor, how many of them are its own.
        label: What it is called.
        dataset: What it was measured on; empty when that is unknown.
        n_chunks: Chunks of text; 0 when unknown.
    """

    path: str
    sizes: Mapping[str, int]
    label: str
    dataset: str
    n_chunks: int


@dataclass(frozen=True)
class NativeOptions:
    """What llama.cpp is asked. Types are numbers: ``llama_ftype``, and ``ggml_type`` for single tensors.

    Attributes:
        ftype: The recipe.
        n_threads: CPU threads.
        output_type: Of ``output.weight``; None leaves it to the recipe.
        embedding_type: Of the token embeddings; None leaves it to the recipe.
        overrides: Regular expressions and the type of the tensors whose names they are found in; the first counts.
        pure: Every tensor in the recipe's base type.
        keep_split: As many files as the source has.
        dry_run: Say what would be done, do nothing.
        assume_imatrix: In a dry run: as if there were an importance matrix, which changes some choices.
    """

    ftype: int
    n_threads: int = 1
    output_type: int | None = None
    embedding_type: int | None = None
    overrides: Sequence[tuple[str, int]] = ()
    pure: bool = False
    keep_split: bool = False
    dry_run: bool = False
    assume_imatrix: bool = False

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "NativeOptions":
        """From JSON."""
        overrides = tuple((pattern, number) for pattern, number in described["overrides"])
        return cls(**{**described, "overrides": overrides})


def quantize_native(
    source: Path,
    target: Path,
    options: NativeOptions,
    imatrix: NativeImatrix | None,
    on_text: Callable[[str], None],
) -> int:
    """Call llama.cpp.

    Args:
        source: The model's first file.
        target: Where it writes; with ``keep_split`` the common part of the names.
        options: What to do.
        imatrix: The importance matrix, or None.
        on_text: Called with pieces of llama.cpp's log, as they come; what it raises is raised when llama.cpp returns.

    Returns:
        0, or 1 when llama.cpp refused; why is in the log.
    """
    failures: list[BaseException] = []

    @lib.llama_log_callback  # type: ignore[untyped-decorator]  # llama_cpp is untyped
    def log(_level: int, text: bytes, _data: Any) -> None:
        try:
            on_text(text.decode("utf-8", errors="replace"))
        except Exception as error:  # noqa: BLE001  ctypes would print and forget it: raised below
            failures.append(error)

    lib.llama_log_set(log, None)
    params = lib.llama_model_quantize_default_params()
    params.ftype = options.ftype
    params.nthread = options.n_threads
    params.allow_requantize = True
    params.pure = options.pure
    params.keep_split = options.keep_split
    params.dry_run = options.dry_run
    params.max_buf_size = _BUFFER_BYTES
    if options.output_type is not None:
        params.output_tensor_type = options.output_type
    if options.embedding_type is not None:
        params.token_embedding_type = options.embedding_type
    kept: list[Any] = []  # what the parameters point to must live as long as the call
    if options.overrides:
        patterns = [lib.llama_model_tensor_override(text.encode(), number) for text, number in options.overrides]
        params.tt_overrides = _array(lib.llama_model_tensor_override, [*patterns, (None, 0)], kept)
    entries: list[Any] = [(b"none", (ctypes.c_float * 1)(1), 1)] if options.assume_imatrix else []
    if imatrix is not None:
        entries = _entries(imatrix, kept)
    if entries:
        params.imatrix = _array(lib.llama_model_imatrix_data, [*entries, (None, None, 0)], kept)
    if imatrix is not None:
        pairs = [*_provenance(imatrix), lib.llama_model_kv_override()]  # an empty key ends the list
        params.kv_overrides = _array(lib.llama_model_kv_override, pairs, kept)
    try:
        code = int(lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)))
    finally:
        lib.llama_log_set(lib.llama_log_callback(), None)  # ours ends with this call
    if failures:
        raise failures[0]
    return code


def _entries(imatrix: NativeImatrix, kept: list[Any]) -> list[Any]:
    """Name, weights and size of each tensor; the weights stay in the file, which is mapped."""
    if not imatrix.sizes:
        return []
    with Path(imatrix.path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # ctypes refuses what cannot be written
    entries, start = [], 0
    for name, size in imatrix.sizes.items():
        entries.append((name.encode(), (ctypes.c_float * size).from_buffer(mapped, start), size))
        start += size * ctypes.sizeof(ctypes.c_float)
    kept.append(mapped)
    return entries


def _provenance(imatrix: NativeImatrix) -> list[Any]:
    """The metadata that llama-quantize adds, in its order and with its types."""
    pairs = [_string("quantize.imatrix.file", imatrix.label)]
    if imatrix.dataset:
        pairs.append(_string("quantize.imatrix.dataset", imatrix.dataset))
    pairs.append(_integer("quantize.imatrix.entries_count", len(imatrix.sizes)))
    if imatrix.n_chunks > 0:
        pairs.append(_integer("quantize.imatrix.chunks_count", imatrix.n_chunks))
    return pairs


def _string(key: str, value: str) -> Any:
    pair = lib.llama_model_kv_override(tag=_OVERRIDE_STRING, key=key.encode())
    pair.value.val_str = value.encode()[:_MAX_STRING].decode("utf-8", "ignore").encode()  # a letter is cut off whole
    return pair


def _integer(key: str, value: int) -> Any:
    pair = lib.llama_model_kv_override(tag=_OVERRIDE_INT, key=key.encode())
    pair.value.val_i64 = value
    return pair


def _array(kind: Any, items: Sequence[Any], kept: list[Any]) -> Any:
    array = (kind * len(items))(*items)
    kept.append((array, items))
    return array
