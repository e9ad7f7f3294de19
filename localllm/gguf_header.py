"""The header of a GGUF file, checked before anything else reads the file.

llama.cpp trusts much of what a header claims, and some wrong claims end its process or have corrupted its memory.
So every count, length, type, shape and offset is checked here first, against the file and against fixed bounds, in
time linear in the header and in little memory: large values (the vocabulary) are stepped over, never read. What is
wrong inside those (the same token twice) can still end the process that loads the model, which is therefore a child.
"""

import math
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.gguf_cursor import Cursor
from localllm.gguf_types import ARRAY, BOOL, FLOAT32, MIXES, NUMBERS, STRING, TENSOR_TYPES, UINT32, VALUE_NAMES
from localllm.sanitize import one_line

_VERSIONS = (2, 3)
_BIG_ENDIAN_VERSIONS = tuple(int.from_bytes(version.to_bytes(4, "big"), "little") for version in (1, 2, 3))
_OLD_MAGICS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA (adapter)"}
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_KEY = 0xFFFF  # bytes, from the format
_MAX_TENSOR_NAME = 63  # bytes; ggml keeps names in char[64]
_MAX_DIMS = 4
_MAX_LAYERS = 512  # llama.cpp asserts this, and at least one, which would end its process
_MAX_INT64 = (1 << 63) - 1
# Far more than the largest known models have; each bounds the time that a header can take.
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_STRINGS = 1 << 24
# The shortest that one can be: what a count may claim is bounded by what the file could hold.
_MIN_PAIR = 8 + 1 + 4 + 1
_MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
# What is kept in memory: one string, numbers in one array, and everything together (bytes).
_KEPT_STRING = 1 << 20
_KEPT_NUMBERS = 4096
_KEPT_TOTAL = 1 << 24
_NUMBER_COST = 40  # bytes that a number takes in a tuple


@dataclass(frozen=True)
class LargeValue:
    """A metadata value that was stepped over.

    Attributes:
        type_name: ``string``, or an array's items with brackets: ``string[]``, ``f32[]``.
        length: Bytes of a string, items of an array.
        position: Where its content starts, in bytes from the start of the file.
    """

    type_name: str
    length: int
    position: int


Value = int | float | bool | str | tuple[int | float, ...] | LargeValue


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        name: ``blk.0.attn_q.weight``, …
        shape: In the order of the file: the first is the length of a row.
        type_name: ``F16``, ``Q4_K``, …
        offset: From the start of the file, in bytes.
        n_bytes: Bytes of its data.
        n_elements: Number of weights.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int
    n_elements: int


@dataclass(frozen=True)
class GGUFHeader:
    """A checked header.

    Attributes:
        version: 2 or 3.
        metadata: Keys and values in the order of the file; arrays of strings and everything large are
            :class:`LargeValue`.
        tensors: In the order of the file.
        alignment: Of the tensors' data, in bytes.
        file_size: Bytes.
    """

    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    file_size: int

    @property
    def architecture(self) -> str:
        """The architecture (``llama``, ``gemma3``); empty in the later parts of a split model."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def n_parameters(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """The type of most weights, or the mix when the file names it (``Q4_K_M``); empty without tensors."""
        weights: Counter[str] = Counter()
        for tensor in self.tensors:
            weights[tensor.type_name] += tensor.n_elements
        if not weights:
            return ""
        dominant = weights.most_common(1)[0][0]
        mix = MIXES.get(self.number("general.file_type"), "")
        return mix if mix.startswith(dominant) else dominant

    @property
    def n_ctx_train(self) -> int:
        """Context length in training, in tokens; 0 when the file does not say."""
        return self.of_architecture("context_length")

    @property
    def n_layer(self) -> int:
        """Number of blocks; 0 when the file does not say."""
        return self.of_architecture("block_count")

    @property
    def n_embd(self) -> int:
        """Width of an embedding; 0 when the file does not say."""
        return self.of_architecture("embedding_length")

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary; 0 when the file does not say."""
        return self.of_architecture("vocab_size") or self.array_length("tokenizer.ggml.tokens")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a chat; None when the file has none (or one past 1 MiB)."""
        return value if isinstance(value := self.metadata.get("tokenizer.chat_template"), str) else None

    def array_length(self, key: str) -> int:
        """Number of items of the array ``key``; 0 when there is no such array."""
        value = self.metadata.get(key)
        if isinstance(value, LargeValue):
            return value.length if value.type_name.endswith("[]") else 0
        return len(value) if isinstance(value, tuple) else 0

    def number(self, key: str) -> int:
        """The whole number ``key``; 0 when it is absent, negative or something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    def of_architecture(self, key: str) -> int:
        """The whole number ``<architecture>.key``; 0 when it is absent, negative or something else."""
        return self.number(f"{self.architecture}.{key}")


def read_gguf_header(path: Path, *, model: bool = True) -> GGUFHeader:
    """Read and check the header of ``path``: a model's, or unless ``model`` that of other data in this format.

    Raises:
        InvalidModelError: It is not a regular file, not GGUF, of an unknown version, damaged, hostile, or cut short.
    """
    label = one_line(path.name, 80)
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidModelError(f"The model file {label} cannot be opened: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelError(f"{label} is not a regular file.", "Give the path of a .gguf file.")
        return _Parser(Cursor(descriptor, status.st_size, label)).parse(model=model)
    except OSError as error:
        raise InvalidModelError(f"The model file {label} cannot be read: {error.strerror}.") from error
    finally:
        os.close(descriptor)


def read_gguf_parts(paths: Sequence[Path]) -> GGUFHeader:
    """Read and check a model in one file, or in the several that a large one is split into.

    Args:
        paths: All of its files, the first part first.

    Returns:
        The first part's header with the tensors of all; each tensor's offset is in its own part.

    Raises:
        InvalidModelError: As for :func:`read_gguf_header`; or parts are missing or out of order.
    """
    headers = [read_gguf_header(path) for path in paths]
    first = headers[0]
    promised = first.number("split.count") or 1
    if promised != len(paths):
        raise InvalidModelError(
            f"{one_line(paths[0].name, 80)} is one of {promised} parts, and {len(paths)} are here.",
            "All parts are needed.",
        )
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        if header.number("split.no") != number:
            raise InvalidModelError(
                f"{one_line(path.name, 80)} is not part {number + 1} of {promised}.", "Pull the model again."
            )
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return replace(first, tensors=tensors, file_size=sum(header.file_size for header in headers))


class _Parser:
    """One pass over a header."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.kept = 0
        self.n_strings = 0
        self.kinds: dict[str, int] = {}
        self.metadata: dict[str, Value] = {}

    def parse(self, *, model: bool = True) -> GGUFHeader:
        version = self._preamble()
        cursor = self.cursor
        n_tensors = self._count("tensors", _MIN_TENSOR, _MAX_TENSORS)
        n_pairs = self._count("metadata pairs", _MIN_PAIR, _MAX_PAIRS)
        for _ in range(n_pairs):
            self._pair()
        alignment = self._alignment()
        if model:
            self._check_architecture()
        names: set[str] = set()
        relative = [self._tensor(alignment, names) for _ in range(n_tensors)]
        data_start = -(-cursor.position // alignment) * alignment
        tensors = tuple(replace(tensor, offset=data_start + tensor.offset) for tensor in relative)
        self._check_places(tensors)
        return GGUFHeader(version, self.metadata, tensors, alignment, cursor.size)

    def _check_architecture(self) -> None:
        if self.kinds.get("adapter.lora.alpha", FLOAT32) != FLOAT32:  # llama.cpp asserts this
            raise self.cursor.invalid("adapter.lora.alpha is not an f32")
        part = self.metadata.get("split.no")
        if isinstance(part, int) and part > 0 and "general.architecture" not in self.metadata:
            return  # the later parts of a split model hold tensors alone
        if self.kinds.get("general.architecture") != STRING or not self.metadata["general.architecture"]:
            raise self.cursor.invalid("it does not name its architecture (general.architecture)")
        n_layer = self.metadata.get(f"{self.metadata['general.architecture']}.block_count")
        if isinstance(n_layer, int) and not 0 < n_layer <= _MAX_LAYERS:
            raise self.cursor.invalid(f"it claims {n_layer} layers")

    def _preamble(self) -> int:
        cursor = self.cursor
        if cursor.size == 0:
            raise cursor.invalid("it is empty", "The download did not begin, or was cut short: pull the model again.")
        magic = cursor.take(4, "the magic")
        if magic in _OLD_MAGICS:
            raise cursor.invalid(f"it is of the older {_OLD_MAGICS[magic]} format", "Find a .gguf file of the model.")
        if magic != b"GGUF":
            raise cursor.invalid("it does not start with GGUF")
        version = cursor.u32("the version")
        if version in _BIG_ENDIAN_VERSIONS:
            raise cursor.invalid("it is big-endian", "Find the little-endian file of the model.")
        if version not in _VERSIONS:
            raise cursor.invalid(f"version {version} of the format is not known", "Versions 2 and 3 can be read.")
        return version

    def _count(self, what: str, smallest: int, most: int) -> int:
        """A count, bounded by ``most`` and by what the file could hold at ``smallest`` bytes each."""
        count = self.cursor.u64(f"the number of {what}")
        if count > most:
            raise self.cursor.invalid(f"it claims {count} {what}")
        if count * smallest > self.cursor.remaining:
            raise self.cursor.cut_short(f"a list of {count} {what}")
        return count

    def _pair(self) -> None:
        cursor = self.cursor
        key = self._text(_MAX_KEY, "a metadata key")
        if not key or key in self.metadata:
            raise cursor.invalid(f"the metadata key {one_line(key, 80)!r} is {'there twice' if key else 'empty'}")
        what = f"the value of {one_line(key, 80)!r}"
        kind = cursor.u32(what)
        if kind == STRING:
            self.metadata[key] = self._string(what)
        elif kind == ARRAY:
            self.metadata[key] = self._array(what)
        elif kind in NUMBERS:
            number = cursor.numbers(kind, 1, what)[0]
            if kind == BOOL and number not in (0, 1):
                raise cursor.invalid(f"{what} is no truth value")
            self.metadata[key] = bool(number) if kind == BOOL else number
        else:
            raise cursor.invalid(f"{what} has the unknown type {kind}")
        self.kinds[key] = kind

    def _string(self, what: str) -> Value:
        length = self.cursor.u64(what)
        position = self.cursor.position
        if length <= _KEPT_STRING and self.kept + length <= _KEPT_TOTAL:
            self.kept += length
            # Values are shown, never looked up: a broken character in a licence is no reason to refuse a model.
            return self.cursor.take(length, what).decode(errors="replace")
        self.cursor.skip(length, what)
        return LargeValue("string", length, position)

    def _array(self, what: str) -> Value:
        cursor = self.cursor
        kind, count = cursor.u32(what), cursor.u64(what)
        position = cursor.position
        if kind == ARRAY:
            raise cursor.invalid(f"{what} is an array of arrays")
        if kind == STRING:
            self.n_strings += count
            if self.n_strings > _MAX_STRINGS:
                raise cursor.invalid(f"its arrays claim {self.n_strings} strings")
            cursor.skip_strings(count, what)
        elif kind not in NUMBERS:
            raise cursor.invalid(f"{what} is an array of the unknown type {kind}")
        elif count <= _KEPT_NUMBERS and self.kept + count * _NUMBER_COST <= _KEPT_TOTAL:
            self.kept += count * _NUMBER_COST
            return cursor.numbers(kind, count, what)
        else:
            cursor.skip(count * NUMBERS[kind].size, what)
        return LargeValue(f"{VALUE_NAMES[kind]}[]", count, position)

    def _text(self, limit: int, what: str) -> str:
        """A key or a name: short, UTF-8, and without NUL (C would read less of it than we do)."""
        cursor = self.cursor
        length = cursor.u64(what)
        if length > cursor.remaining:
            raise cursor.cut_short(what)
        self.kept += length
        if length > limit or self.kept > _KEPT_TOTAL:
            raise cursor.invalid(f"{what} at byte {cursor.position} has {length} bytes")
        try:
            text = cursor.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise cursor.invalid(f"{what} at byte {cursor.position - length} is not UTF-8") from error
        if "\0" in text:
            raise cursor.invalid(f"{what} at byte {cursor.position - length} holds a NUL")
        return text

    def _alignment(self) -> int:
        if "general.alignment" not in self.metadata:
            return _DEFAULT_ALIGNMENT
        value = self.metadata["general.alignment"]
        if self.kinds["general.alignment"] != UINT32 or not isinstance(value, int):
            raise self.cursor.invalid("general.alignment is not a u32")
        if value < 8 or value > _MAX_ALIGNMENT or value & (value - 1):
            raise self.cursor.invalid(f"its alignment is {value}, not a power of two from 8 to {_MAX_ALIGNMENT}")
        return value

    def _tensor(self, alignment: int, names: set[str]) -> TensorInfo:
        """One tensor's description; its offset is still relative to the start of the data."""
        cursor = self.cursor
        name = self._text(_MAX_TENSOR_NAME, "a tensor's name")
        shown = f"the tensor {one_line(name, 80)!r}"
        if not name or name in names:
            raise cursor.invalid(f"{shown} is there twice" if name else "a tensor has no name")
        names.add(name)
        n_dims = cursor.u32(shown)
        if not 1 <= n_dims <= _MAX_DIMS:
            raise cursor.invalid(f"{shown} has {n_dims} dimensions")
        shape = cursor.u64s(n_dims, shown)
        kind = TENSOR_TYPES.get(number := cursor.u32(shown))
        offset = cursor.u64(shown)
        if kind is None:
            raise cursor.invalid(f"{shown} has the unknown type {number}", "A newer localllm may know this type.")
        n_elements = math.prod(shape)
        if not 0 < n_elements <= _MAX_INT64 or (n_bytes := n_elements // kind.block * kind.n_bytes) > _MAX_INT64:
            raise cursor.invalid(f"{shown} has the impossible shape {list(shape)}")
        if shape[0] % kind.block:
            raise cursor.invalid(f"{shown} has rows of {shape[0]}, not a multiple of {kind.block} as {kind.name} needs")
        if offset % alignment:
            raise cursor.invalid(f"{shown} starts at {offset}, not a multiple of {alignment}")
        return TensorInfo(name, shape, kind.name, offset, n_bytes, n_elements)

    def _check_places(self, tensors: tuple[TensorInfo, ...]) -> None:
        """Every tensor is inside the file, and none lies over another."""
        by_offset = sorted(tensors, key=lambda tensor: tensor.offset)
        for tensor, following in pairwise(by_offset):
            if tensor.offset + tensor.n_bytes > following.offset:
                pair = f"{one_line(tensor.name, 80)!r} and {one_line(following.name, 80)!r}"
                raise self.cursor.invalid(f"the tensors {pair} lie over each other")
        end = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=0)
        if end > self.cursor.size:
            raise self.cursor.invalid(
                f"{end - self.cursor.size} of its {end} bytes are missing",
                "The download was probably cut short: pull the model again.",
            )
