"""What the engine's steps took, for ``/metrics``: added up here, sent to the server about once a second.

A step costs this some two microseconds. The figures are totals since the engine began, so a report that is lost, or
never read, loses nothing.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

SHARE_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
SECONDS_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ROWS_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Distribution:
    """A histogram.

    Attributes:
        counts: Values in each bucket, the last for what is above all bounds.
        total: Their sum.
    """

    counts: tuple[int, ...]
    total: float

    def __add__(self, other: "Distribution") -> "Distribution":
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, self.total + other.total)


@dataclass(frozen=True)
class StepReport:
    """Totals over the steps of one engine.

    Attributes:
        share: Python's own share of each step: all of it but decoding and sampling, by :data:`SHARE_BOUNDS`.
        seconds: What each step took, by :data:`SECONDS_BOUNDS`.
        rows: Tokens in each step's batch, by :data:`ROWS_BOUNDS`.
        python_seconds: Python's own time in all steps.
        n_prefill: Tokens of prompts computed; cached ones are not among them.
        n_guessed: Tokens guessed.
        n_right: Those that were right.
        n_preempted: Times that a request had to give way.
        kv_used: Tokens in the KV cache now, those kept for later requests included.
        kv_size: Tokens that it has room for.
    """

    share: Distribution
    seconds: Distribution
    rows: Distribution
    python_seconds: float
    n_prefill: int
    n_guessed: int
    n_right: int
    n_preempted: int
    kv_used: int
    kv_size: int

    def __add__(self, other: "StepReport") -> "StepReport":
        return StepReport(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_wire(cls, record: dict[str, Any]) -> "StepReport":
        """The inverse of :meth:`to_wire`."""
        spread = {
            name: Distribution(tuple(record[name]["counts"]), record[name]["total"])
            for name in ("share", "seconds", "rows")
        }
        return cls(**{**record, **spread})


@dataclass
class _Histogram:
    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def frozen(self) -> Distribution:
        return Distribution(tuple(self.counts), self.total)


class StepMeter:
    """Adds up the steps of one engine; used by the engine's thread only.

    Args:
        clock: Seconds; for tests.

    Attributes:
        native: Seconds in the library since the last step: decoding, and sampling with the wait for the device.
        n_preempted: Times that a request had to give way.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._share, self._seconds = _Histogram(SHARE_BOUNDS), _Histogram(SECONDS_BOUNDS)
        self._rows = _Histogram(ROWS_BOUNDS)
        self._python = 0.0
        self._n_prefill = self._n_guessed = self._n_right = 0
        self._last_report = clock()
        self._changed = False
        self.native = 0.0
        self.n_preempted = 0

    def timed(self, call: Callable[_P, _R]) -> Callable[_P, _R]:
        """``call``, whose time counts as the library's."""

        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            began = self._clock()
            try:
                return call(*args, **kwargs)
            finally:
                self.native += self._clock() - began

        return run

    def batch(self, n_rows: int, n_prefill: int, n_guessed: int = 0, n_right: int = 0) -> None:
        """Take note of a batch that was decoded."""
        self._rows.add(n_rows)
        self._n_prefill += n_prefill
        self._n_guessed += n_guessed
        self._n_right += n_right

    def step(self, seconds: float) -> None:
        """Take note of a whole step, from its beginning until its events were sent."""
        python = max(0.0, seconds - self.native)
        self.native = 0.0
        self._python += python
        self._seconds.add(seconds)
        self._share.add(python / seconds if seconds else 0.0)
        self._changed = True

    def is_due(self, *, idle: bool) -> bool:
        """Whether to report now: there is something new, and it is time, or nothing more will come soon."""
        return self._changed and (idle or self._clock() - self._last_report >= REPORT_SECONDS)

    def report(self, kv_used: int, kv_size: int) -> StepReport:
        """All totals, with the cache as it is now."""
        self._last_report, self._changed = self._clock(), False
        return StepReport(
            share=self._share.frozen(),
            seconds=self._seconds.frozen(),
            rows=self._rows.frozen(),
            python_seconds=self._python,
            n_prefill=self._n_prefill,
            n_guessed=self._n_guessed,
            n_right=self._n_right,
            n_preempted=self.n_preempted,
            kv_used=kv_used,
            kv_size=kv_size,
        )
