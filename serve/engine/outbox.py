"""Sends the events of steps to the server, text at most some sixty times a second.

A frame wakes the server and its client, on the cores that compute the next token: a model that makes a token in 6 ms
lost a tenth of its speed to that. No screen shows more than 60 pictures a second, so steps that follow each other
faster share a frame. Whatever is not text goes out at once, and what waited goes with it, in order.
"""

import time
from collections.abc import Callable, Sequence

from serve.engine.request import AnyEvent, JobEvent
from serve.engine.types import Delta

INTERVAL = 1 / 60  # seconds between two frames of text


class Outbox:
    """Collects events; used by the engine's thread only.

    Args:
        send: Sends a frame of events.
        interval: Seconds that text may wait for more text after a frame went out.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        send: Callable[[Sequence[JobEvent]], None],
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._send = send
        self._interval = interval
        self._clock = clock
        self._frame: list[JobEvent] = []
        self._deltas: dict[int, int] = {}  # where in the frame a job's text is, if nothing of that job follows it
        self._urgent = False
        self._last = float("-inf")  # when text went out

    def put(self, events: Sequence[JobEvent]) -> None:
        """Take the events of a step; send them, or hold them where they are all text and text has just been sent."""
        for job_id, event in events:
            self._add(job_id, event)
        if not self._frame or not (self._urgent or self._clock() - self._last >= self._interval):
            return
        if self._deltas:
            self._last = self._clock()
        frame, self._frame, self._deltas, self._urgent = self._frame, [], {}, False
        self._send(frame)

    def _add(self, job_id: int, event: AnyEvent) -> None:
        place = self._deltas.get(job_id)
        if type(event) is not Delta:
            self._urgent = True
            self._deltas.pop(job_id, None)
        elif place is None:
            self._deltas[job_id] = len(self._frame)
        else:
            _, old = self._frame[place]
            assert isinstance(old, Delta)
            logprobs = old.logprobs + event.logprobs
            self._frame[place] = (job_id, Delta(old.text + event.text, old.n_tokens + event.n_tokens, logprobs))
            return
        self._frame.append((job_id, event))
