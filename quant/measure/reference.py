"""What a source model predicts for a text, on the disk: every candidate is compared with it without running it again.

A directory with ``reference.json``, the tokens, and for each scored position the most probable tokens with their
log-probabilities and the rest's (8 kB a position with k = 1024). ``reference.json`` is written last. Read as a memory
map, a chunk at a time.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError
from localllm.files import disk_full_as_error
from localllm.models.transfer import require_room
from quant.measure.scores import Summary

_META = "reference.json"
_FORMAT = 1

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ReferenceInfo:
    """What a reference holds.

    Attributes:
        n_chunks: Chunks of text.
        n_ctx: Tokens in one.
        n_scored: Positions of a chunk that are scored.
        n_vocab: Logits of the source.
        k: Tokens kept of each position.
        format: Of the files.
    """

    n_chunks: int
    n_ctx: int
    n_scored: int
    n_vocab: int
    k: int
    format: int = _FORMAT

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return self.n_chunks * (4 * self.n_ctx + self.n_scored * (8 * self.k + 4))


class Reference:
    """The files, open.

    Args:
        directory: Where they are.
        info: What they hold.
        mode: ``r``, or ``w+`` to make them.
    """

    def __init__(self, directory: Path, info: ReferenceInfo, mode: str = "r") -> None:
        self.info = info
        scored = (info.n_chunks, info.n_scored)

        def array(name: str, dtype: str, shape: tuple[int, ...]) -> Array:
            path = directory / f"{name}.npy"
            if mode != "r":
                return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
            found: Array = np.lib.format.open_memmap(path, "r")
            if found.shape != shape or found.dtype != np.dtype(dtype):
                raise InvalidModelError(f"The reference {directory.name} is damaged: {path.name}.", "Make it again.")
            return found

        self.tokens = array("tokens", "<i4", (info.n_chunks, info.n_ctx))
        self._ids = array("ids", "<i4", (*scored, info.k))
        self._log_probs = array("log_probs", "<f4", (*scored, info.k))
        self._rest = array("rest", "<f4", scored)

    @classmethod
    def open(cls, directory: Path) -> "Reference":
        """Open a finished reference.

        Raises:
            InvalidModelError: There is none, or it is damaged.
        """
        try:
            info = ReferenceInfo(**json.loads((directory / _META).read_text(encoding="utf-8")))
            if info.format != _FORMAT:
                raise InvalidModelError(f"The reference {directory.name} is of another version.", "Make it again.")
            return cls(directory, info)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidModelError(f"{directory.name} holds no reference: {error}.", "Make it again.") from error

    def put(self, chunk: int, summary: Summary) -> None:
        """Write one chunk's summary."""
        self._ids[chunk], self._log_probs[chunk], self._rest[chunk] = summary.ids, summary.log_probs, summary.rest

    def get(self, chunk: int) -> Summary:
        """Read one chunk's summary."""
        return Summary(np.array(self._ids[chunk]), np.array(self._log_probs[chunk]), np.array(self._rest[chunk]))

    def flush(self) -> None:
        """Make what was written durable."""
        for array in (self.tokens, self._ids, self._log_probs, self._rest):
            if isinstance(array, np.memmap):
                array.flush()


@contextmanager
def new_reference(directory: Path, info: ReferenceInfo, chunks: Sequence[Sequence[int]]) -> Iterator[Reference]:
    """Write a reference into the empty ``directory``; it is finished when the body ends without an error.

    Raises:
        DiskFullError: There is no room.
    """
    # A memory map on a full disk would end the process (SIGBUS).
    require_room(directory, info.n_bytes)
    with disk_full_as_error(directory):
        reference = Reference(directory, info, "w+")
        reference.tokens[:] = np.array(chunks, np.int32)
        yield reference
        reference.flush()
        (directory / _META).write_text(json.dumps(asdict(info)), encoding="utf-8")
