"""What a step costs, by the rows of its batch, measured while running.

A GPU decodes eight rows in the time of one; two cores take as long for two rows as for two steps, and yet sixteen rows
in the time of seven, where llama.cpp has a better kernel for wide batches. Only measuring tells.
"""

from bisect import bisect_left, insort
from collections import deque
from statistics import median_low

# Of a single row's time; a row beyond what was measured is taken to cost only this much more, so that it is tried.
_HOPE = 0.15
_N_SAMPLES = 3
# A figure that has not been renewed in so many steps is forgotten, and tried again: it may have been an accident.
_STALE = 2000


class StepCosts:
    """Seconds of steps that only decode."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._renewed: dict[int, int] = {}
        self._known: list[int] = []  # the row counts in order
        self._n_steps = 0

    def learn(self, n_rows: int, seconds: float) -> None:
        """Take note of a step of ``n_rows``; one without rows costs nobody anything."""
        if not n_rows:
            return
        self._n_steps += 1
        samples = self._samples.get(n_rows)
        if samples is None:
            samples = self._samples[n_rows] = deque(maxlen=_N_SAMPLES)
            insort(self._known, n_rows)
        samples.append(seconds)
        self._renewed[n_rows] = self._n_steps
        if self._n_steps % _STALE == 0:
            for rows in [rows for rows, step in self._renewed.items() if step <= self._n_steps - _STALE]:
                del self._samples[rows], self._renewed[rows]
                self._known.remove(rows)

    def seconds(self, n_rows: int) -> float:
        """What a step of ``n_rows`` takes; 0 before anything was measured."""
        if not self._known:
            return 0.0
        place = bisect_left(self._known, n_rows)
        above = self._known[place] if place < len(self._known) else None
        if above == n_rows:
            return self._measured(n_rows)
        if place == 0:  # never too much, or narrow steps would not be tried once wide ones are known
            return self._measured(self._known[0]) * n_rows / self._known[0]
        below = self._known[place - 1]
        cost = self._measured(below)
        if above is None:
            return cost + (n_rows - below) * _HOPE * self._measured(self._known[0]) / self._known[0]
        return cost + (n_rows - below) / (above - below) * (self._measured(above) - cost)

    def _measured(self, n_rows: int) -> float:
        # The median forgives a hiccup of the machine; of two, the better one.
        return median_low(self._samples[n_rows])
