"""What commands print: tables and sizes to standard output, progress to standard error.

No colour is used here, so ``NO_COLOR`` has nothing to switch off. A bar is drawn only on a terminal that can
move its cursor; elsewhere (a pipe, a log, ``TERM=dumb``) there are plain lines, few of them.
"""

import math
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Literal, Self, TextIO

from localllm.sanitize import one_line

Unit = Literal["B", "", "tok"]

_REDRAW_SECONDS = 0.1
_PLAIN_SECONDS = 5.0
_SMOOTHING_SECONDS = 3.0
_BAR_CELLS = 24
_ERASE_LINE = "\r\x1b[K"


def human_bytes(n: int) -> str:
    """``n`` bytes in decimal units, as disks and downloads are sold: ``98.4 MB``."""
    size = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        # 999.95 would be rounded up to 1000.0, which belongs to the next unit.
        if abs(size) < 999.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A time as ``0:07``, ``12:30`` or ``1:02:03``."""
    minutes, second = divmod(max(0, math.ceil(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def display_width(text: str) -> int:
    """Terminal cells that ``text`` takes: two for a wide character or an emoji, none for a combining accent."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print a table to standard output: columns two spaces apart, no rules, nothing cut.

    Args:
        headers: One a column.
        rows: Cells as text; control characters in them are made visible.
        right: Indices of the columns that are aligned to the right.
    """
    table = [[one_line(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(display_width, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - display_width(cell))
            cells.append(padding + cell if index in right else cell + padding)
        print("  ".join(cells).rstrip())


class Progress:
    """How far something has come: a bar with rate and time left on a terminal, a plain line now and then elsewhere.

    Any thread may call any method. As a context manager it finishes by itself, and leaves a clean line when an
    exception passes through.

    Attributes:
        label: What is being done.
        total: How much there is to do; None while that is not known.
        unit: ``B`` for bytes, ``tok`` for tokens, nothing for a count.
        stream: Where it is drawn; standard error by default.
        clock: Seconds that only ever grow.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: Unit = "B",
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = one_line(label)
        self.total = total
        self.unit = unit
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self._live = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._lock = threading.Lock()
        self._done = 0
        self._started: tuple[float, int] | None = None  # when, and how much was there already (a resumed download)
        self._sample: tuple[float, int] | None = None
        self._rate = 0.0
        self._drawn_at = -math.inf
        self._finished = False

    def update(self, done: int, total: int | None = None) -> None:
        """Say how much is done, counted from the beginning; ``total`` replaces what was given before."""
        with self._lock:
            if self._finished:
                return
            now = self.clock()
            self._done = done
            if total is not None:
                self.total = total
            if self._started is None:
                self._started = self._sample = (now, done)
            self._measure(now)
            if now - self._drawn_at >= (_REDRAW_SECONDS if self._live else _PLAIN_SECONDS):
                self._drawn_at = now
                self._draw()

    def say(self, line: str) -> None:
        """Print a line of its own above the bar."""
        with self._lock:
            self.stream.write((_ERASE_LINE if self._live else "") + one_line(line) + "\n")
            self.stream.flush()
            if self._live and self._started is not None and not self._finished:
                self._draw()

    def finish(self, note: str = "") -> None:
        """Draw the last line, with ``note`` at its end. Further calls do nothing."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
            line = self.label
            if self._started is not None:
                started_at, before = self._started
                seconds = self.clock() - started_at
                line += f"  {self._amount(self._done)} in {human_seconds(seconds)}"
                if seconds >= 1 and self._done > before:
                    line += f"  {self._amount((self._done - before) / seconds)}/s"
            if note:
                line += f"  {one_line(note)}"
            self.stream.write((_ERASE_LINE if self._live else "") + line + "\n")
            self.stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish("" if error is None else "stopped")

    def _measure(self, now: float) -> None:
        """Fold the speed since the last sample into the smoothed rate (an exponential moving average over time)."""
        assert self._sample is not None
        then, done_then = self._sample
        elapsed = now - then
        if elapsed < _REDRAW_SECONDS:
            return
        speed = max(0.0, (self._done - done_then) / elapsed)
        weight = 1 - math.exp(-elapsed / _SMOOTHING_SECONDS)
        self._rate = speed if self._rate == 0 else self._rate + weight * (speed - self._rate)
        self._sample = (now, self._done)

    def _draw(self) -> None:
        facts = self._facts()
        if self._live:
            width = _width(self.stream) - 1  # a full line would wrap in some terminals
            bar = self._bar(min(_BAR_CELLS, width - display_width(f"{self.label}  {facts}") - 4))
            self.stream.write(_ERASE_LINE + _cut(f"{self.label}  {bar}{facts}", width))
        else:
            self.stream.write(f"{self.label}  {facts}\n")
        self.stream.flush()

    def _facts(self) -> str:
        parts = []
        if self.total:
            parts.append(f"{min(100, 100 * self._done // self.total):3}%")
            parts.append(f"{self._amount(self._done)} of {self._amount(self.total)}")
        else:
            parts.append(self._amount(self._done))
        if self._rate > 0:
            parts.append(f"{self._amount(self._rate)}/s")
            if self.total and self.total > self._done:
                parts.append(f"{human_seconds((self.total - self._done) / self._rate)} left")
        return "  ".join(parts)

    def _bar(self, cells: int) -> str:
        if not self.total or cells < 4:
            return ""
        full, empty = ("█", "░") if (self.stream.encoding or "").lower().startswith("utf") else ("#", ".")
        filled = min(cells, cells * self._done // self.total)
        return f"{full * filled}{empty * (cells - filled)}  "

    def _amount(self, n: float) -> str:
        if self.unit == "B":
            return human_bytes(int(n))
        text = f"{n:.1f}" if isinstance(n, float) and n < 100 else f"{n:.0f}"
        return f"{text} {self.unit}".rstrip()


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        # The stream has no descriptor (a test), or is not the terminal that it claims to be.
        return shutil.get_terminal_size().columns


def _cut(text: str, width: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += display_width(char)
        if used > width:
            return text[:index]
    return text
