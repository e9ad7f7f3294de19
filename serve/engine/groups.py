"""Whose turn it is, where requests use different LoRA adapters.

Adapters belong to llama.cpp's context, not to a sequence, so one batch has one set of them. Requests with the same set
run together; sets take turns. Changing the set makes llama.cpp plan its computation anew (docs/LOG.md has the cost), so
a turn lasts a while, and ends early only when nothing of its set runs.
"""

from collections.abc import Callable, Sequence

from serve.engine.request import AdapterSet, Running

# Seconds: long against the cost of a change, short for somebody who waits for the next word.
QUANTUM = 0.25


class AdapterTurns:
    """Chooses the adapter set of the next batch.

    Args:
        use: Makes the model compute with a set; called before every batch.
        quantum: Seconds that a set keeps its turn while another one waits.
    """

    def __init__(self, use: Callable[[AdapterSet], None], quantum: float = QUANTUM) -> None:
        self._use = use
        self._quantum = quantum
        self._queue: list[AdapterSet] = []  # the set whose turn it is, then the others in order
        self._began = 0.0

    def take(self, running: Sequence[Running], now: float) -> list[Running]:
        """Those of ``running`` that the next batch is for: all of one set, the most important first.

        A set that is new, or comes back, goes to the end of the queue; so no set waits for more than a turn of each
        other one.

        Args:
            running: All that hold a sequence; at least one.
            now: Seconds.
        """
        current = self._queue[0] if self._queue else None
        present = dict.fromkeys(request.job.adapters for request in running)
        if len(present) == 1 and current in present:
            self._began = now  # nobody else waits
            self._queue = self._queue[:1]
        else:
            kept = [adapters for adapters in self._queue if adapters in present]
            self._queue = [*kept, *(adapters for adapters in present if adapters not in kept)]
            if self._queue[0] == current and now - self._began >= self._quantum:
                self._queue.append(self._queue.pop(0))
            if self._queue[0] != current:
                self._began = now
        self._use(self._queue[0])
        members = [request for request in running if request.job.adapters == self._queue[0]]
        return sorted(members, key=lambda request: -request.job.priority)
