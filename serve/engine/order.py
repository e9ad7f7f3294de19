"""Who comes next, who has waited too long, and who gives way; the same for every engine."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

from localllm.errors import EngineBusyError
from serve.engine.request import Job

# Seconds of waiting that weigh as much as one step of priority.
_AGEING = 5.0


class Queued(Protocol):
    """A request of either engine.

    Attributes:
        job: What was asked.
        arrived: When, in the scheduler's clock.
    """

    job: Job
    arrived: float


_Queued = TypeVar("_Queued", bound=Queued)


def in_turn(waiting: Sequence[_Queued], running: Sequence[_Queued], now: float) -> list[_Queued]:
    """Who waits, in the order in which they should be admitted.

    Higher priorities come first, but none waits for ever: who has waited long is treated as one of the highest. Among
    equals those come first whose client has the fewest requests running or before them, and of one client's those with
    the adapters that it uses the least; else it goes by arrival.
    """
    if len({(request.job.owner, request.job.priority) for request in waiting}) < 2:
        return list(waiting)
    highest = max(request.job.priority for request in waiting)

    def level(request: _Queued) -> int:
        return -min(highest, request.job.priority + int((now - request.arrived) / _AGEING))

    turns = sorted(waiting, key=level)
    turns = _spread(turns, running, lambda request: request.job.owner)
    turns = _spread(turns, running, lambda request: request.job.client)
    return sorted(turns, key=level)


def _spread(
    requests: Iterable[_Queued], running: Iterable[_Queued], key: Callable[[_Queued], Hashable]
) -> list[_Queued]:
    """``requests``, those first whose ``key`` is the rarest among what runs and what stands before them."""
    ahead = Counter(map(key, running))
    turns: list[tuple[int, _Queued]] = []
    for request in requests:
        turns.append((ahead[key(request)], request))
        ahead[key(request)] += 1
    return [request for _, request in sorted(turns, key=lambda turn: turn[0])]


def due(request: Queued) -> float:
    """When ``request`` has to be done, in the scheduler's clock; infinity when nobody said."""
    return float("inf") if request.job.deadline is None else request.arrived + request.job.deadline


def too_late(request: Queued) -> EngineBusyError:
    """What a request is told whose deadline has passed before its first token."""
    return EngineBusyError(
        f"The answer could not begin within {request.job.deadline:g} s.", "Ask again later, or allow more time."
    )


def giving_way(running: Iterable[_Queued]) -> _Queued:
    """Of those that run the one to stop when there is no room for all: the least important, the youngest of these."""
    return min(running, key=lambda request: (request.job.priority, -request.arrived))
