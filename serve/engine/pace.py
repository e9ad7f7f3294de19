"""How much of a prompt may enter in one step while other requests decode.

Every token of a slice delays the next token of everybody else. So the slice is as long as a step can take without
growing to more than a few times what it takes without one, measured while running: a GPU reads hundreds of tokens in
that time, two cores some twenty.
"""

_FIRST = 64  # before anything has been measured
_SHORTEST = 16  # a prompt must get on, and very short batches waste the machine
_BUDGET = 1.5  # seconds for a slice, in steps that only decode
_MEMORY = 0.8  # how much the past weighs


class Pace:
    """Learns from the steps how long slices may be."""

    def __init__(self) -> None:
        self._decode = 0.0  # seconds of a step that only decodes
        self._rate = 0.0  # tokens of prompts in a second

    def learn(self, n_decoding: int, n_prefill: int, seconds: float) -> None:
        """Take note of a step.

        Args:
            n_decoding: Requests that decoded in it.
            n_prefill: Tokens of prompts in it.
            seconds: What it took.
        """
        if not n_prefill:
            self._decode = _blend(self._decode, seconds)
            return
        cost = seconds - self._decode if n_decoding else seconds
        if cost > 0:
            self._rate = _blend(self._rate, n_prefill / cost)

    def slice(self) -> int:
        """Tokens of prompts for the next step in which others decode."""
        if not self._decode or not self._rate:
            return _FIRST
        return max(_SHORTEST, int(_BUDGET * self._decode * self._rate))


def _blend(old: float, new: float) -> float:
    return _MEMORY * old + (1 - _MEMORY) * new if old else new
