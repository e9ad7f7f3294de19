"""Reading a GGUF header's primitives with bounds: a claimed length never reads past the file, nor allocates."""

import os
import struct

from localllm.errors import InvalidModelError
from localllm.gguf_types import NUMBERS

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_WINDOW = 1 << 18  # bytes read at once


class Cursor:
    """A position in a file that only moves forward, read through a small window.

    Not an mmap: a file that shrinks while it is mapped ends the process (SIGBUS); here it is an error.

    Args:
        descriptor: An open regular file.
        size: Its size in bytes.
        label: What messages call it.
    """

    def __init__(self, descriptor: int, size: int, label: str) -> None:
        self._descriptor = descriptor
        self._window = b""
        self._window_start = 0
        self.size = size
        self.label = label
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes between the position and the end of the file."""
        return self.size - self.position

    def invalid(self, what: str, hint: str = "The file is damaged or not a model: pull it again.") -> InvalidModelError:
        """The error for this file; ``what`` completes "NAME is not a valid GGUF file: …"."""
        return InvalidModelError(f"{self.label} is not a valid GGUF file: {what}.", hint)

    def cut_short(self, what: str) -> InvalidModelError:
        """The error for a file that ends too early."""
        return self.invalid(
            f"{what} at byte {self.position} goes past the end of the file ({self.size} bytes)",
            "The download was probably cut short, or the file is damaged: pull the model again.",
        )

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next ``n_bytes`` bytes; the caller bounds ``n_bytes``.

        Raises:
            InvalidModelError: The file ends before.
        """
        if n_bytes > self.remaining:
            raise self.cut_short(what)
        start = self.position - self._window_start
        if start < 0 or start + n_bytes > len(self._window):
            self._fill(n_bytes)
            start = 0
            if n_bytes > len(self._window):  # it shrank while we read
                raise self.cut_short(what)
        self.position += n_bytes
        return self._window[start : start + n_bytes]

    def skip(self, n_bytes: int, what: str) -> None:
        """Move forward without reading.

        Raises:
            InvalidModelError: The file ends before.
        """
        if n_bytes > self.remaining:
            raise self.cut_short(what)
        self.position += n_bytes

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        value: int = _U32.unpack(self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        value: int = _U64.unpack(self.take(8, what))[0]
        return value

    def u64s(self, count: int, what: str) -> tuple[int, ...]:
        """``count`` unsigned 64-bit numbers; the caller bounds ``count``."""
        return struct.unpack(f"<{count}Q", self.take(8 * count, what))

    def numbers(self, kind: int, count: int, what: str) -> tuple[int | float, ...]:
        """``count`` numbers of the metadata value type ``kind``; the caller bounds ``count``."""
        layout = NUMBERS[kind]
        return tuple(value for (value,) in layout.iter_unpack(self.take(layout.size * count, what)))

    def skip_strings(self, count: int, what: str) -> None:
        """Move past ``count`` strings (a length in 8 bytes, then as many bytes), reading only their lengths.

        The inner loop runs once a token of the vocabulary: 0.1 microseconds each, so it is kept bare.

        Raises:
            InvalidModelError: The file ends before.
        """
        length_at = _U64.unpack_from
        while count:
            if self.remaining < 8:
                raise self.cut_short(what)
            self._fill(8)
            window, here, last = self._window, 0, len(self._window) - 8
            if last < 0:  # it shrank while we read
                raise self.cut_short(what)
            while count and here <= last:
                here += 8 + length_at(window, here)[0]
                count -= 1
            self.skip(here, what)

    def _fill(self, at_least: int) -> None:
        """Make the window start at the position."""
        self._window = os.pread(self._descriptor, max(at_least, _WINDOW), self.position)
        self._window_start = self.position
