"""From token bytes to text that can be shown: whole characters, never a part of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes token bytes and ends at the first stop string.

    Text that may be the beginning of a stop string is held back until it is clear that it is not.

    Args:
        stop: Strings that end the text; none of them is ever part of it.

    Attributes:
        found: The one that ended it; empty while none has.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.found = ""

    @property
    def stopped(self) -> bool:
        """A stop string has ended the text."""
        return bool(self.found)

    def feed(self, raw: bytes) -> str:
        """Take a token's bytes; return the text that is certain now (often all of it, sometimes none)."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(raw)
        if not self._stop:
            return text
        cut, found = min(((at, stop) for stop in self._stop if (at := text.find(stop)) >= 0), default=(0, ""))
        if found:
            self.found, self._held = found, ""
            return text[:cut]
        n_held = self._overlap(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """What was held back, now that nothing follows. An unfinished character is dropped."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _overlap(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self._stop)) - 1
        for n in range(min(longest, len(text)), 0, -1):
            tail = text[-n:]
            if any(stop.startswith(tail) for stop in self._stop):
                return n
        return 0
