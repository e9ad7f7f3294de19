"""How much of a prompt may enter in one step while other requests decode.

Every token of a slice delays the next token of everybody else. So a step may take only so much longer than one that
only decodes, by what steps of so many rows were seen to take: a GPU reads hundreds of tokens in that time, two cores
some twenty.
"""

from serve.engine.costs import StepCosts

_FIRST = 64  # before anything has been measured
_SHORTEST = 16  # a prompt must get on, and very short batches waste the machine
_GRAIN = 8
_LONGEST = 4096
# A step with a slice may take so much more than one without: 1.5 times its time where few wait for their next token,
# less where many do, so that what all of them wait together is bounded.
MOST, _LEAST, _TOGETHER = 1.5, 0.75, 12.0
# Nobody is spared more than that: once all prompts are read, everybody waits for a step of all of them.
_OF_ALL = 1.5


class Pace:
    """Tells how long slices may be.

    Args:
        costs: What steps take by their rows.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs

    def slice(self, n_decoding: int, n_reading: int) -> int:
        """Tokens of prompts for the next step.

        Args:
            n_decoding: Requests that decode in it; one at least.
            n_reading: Requests whose prompts are still to be read.
        """
        plain = self._costs.seconds(n_decoding)
        more = min(MOST, max(_LEAST, _TOGETHER / n_decoding))
        limit = max((1 + more) * plain, _OF_ALL * self._costs.seconds(n_decoding + n_reading))
        return longest_slice(self._costs, n_decoding, limit) if plain else _FIRST


def longest_slice(costs: StepCosts, n_before: int, limit: float) -> int:
    """Rows that a step may have besides ``n_before``, to take no longer than ``limit`` seconds; some, in any case."""
    if not costs.knows_wider_than(n_before):
        return _FIRST
    longest = _SHORTEST
    for n in range(_SHORTEST + _GRAIN, _LONGEST, _GRAIN):
        if costs.seconds(n_before + n) > limit:
            break
        longest = n
    return longest
