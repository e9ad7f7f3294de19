"""How much of a prompt may enter in one step while other requests decode.

Every token of a slice delays the next token of everybody else. So a step may take only so much longer than one that
only decodes, measured while running: a GPU reads hundreds of tokens in that time, two cores some twenty.
"""

from serve.engine.costs import StepCosts

_FIRST = 64  # before anything has been measured
_SHORTEST = 16  # a prompt must get on, and very short batches waste the machine
# A step with a slice may take so much more than one without: 1.5 times its time where few wait for their next token,
# less where many do, so that what all of them wait together is bounded.
MOST, _LEAST, _TOGETHER = 1.5, 0.5, 10.0
# Nobody is spared more than that: once all prompts are read, everybody waits for a step of all of them.
_OF_ALL = 1.25
# How much the past weighs where a token has become dearer (the cache has filled), and where it has become cheaper.
_DEARER, _CHEAPER = 0.5, 0.8


class Pace:
    """Learns from the steps how long slices may be.

    Args:
        costs: What steps that only decode take, by their rows; told by whoever owns it.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._price = 0.0  # seconds that a token of a prompt adds to a step

    def learn(self, n_decoding: int, n_prefill: int, seconds: float) -> None:
        """Take note of a step with a slice.

        Args:
            n_decoding: Requests that decoded in it.
            n_prefill: Tokens of prompts in it; without any it says nothing here.
            seconds: What it took.
        """
        plain = self._costs.seconds(n_decoding) if n_decoding else 0.0
        if not n_prefill or (n_decoding and not plain):
            return
        # A step that was faster than thought is a hiccup of what it is compared with, not a gift.
        price = max((seconds - plain) / n_prefill, self._price / 2)
        memory = _DEARER if price > self._price else _CHEAPER
        self._price = memory * self._price + (1 - memory) * price if self._price else max(price, 0.0)

    def slice(self, n_decoding: int, n_reading: int) -> int:
        """Tokens of prompts for the next step.

        Args:
            n_decoding: Requests that decode in it; one at least.
            n_reading: Requests whose prompts are still to be read.
        """
        plain = self._costs.seconds(n_decoding)
        if not plain:
            return _FIRST
        more = min(MOST, max(_LEAST, _TOGETHER / n_decoding)) * plain
        of_all = _OF_ALL * self._costs.seconds(n_decoding + n_reading) - plain
        return self.tokens_in(max(more, of_all))

    def tokens_in(self, seconds: float) -> int:
        """Tokens of prompts that add so many seconds to a step; some, in any case."""
        return max(_SHORTEST, int(seconds / self._price)) if self._price else _FIRST
