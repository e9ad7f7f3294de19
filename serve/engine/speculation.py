"""How many tokens are guessed for whom: as many as make the most tokens a second.

A guess costs rows of the batch, and gains what of it is right. The lookup tells the chances, the measured steps tell
the cost; where no length pays, nothing is guessed.
"""

from collections.abc import Sequence

from serve.engine.costs import StepCosts
from serve.engine.request import Running

# Past this many requests a batch keeps the cores busy without guesses.
MAX_GUESSING = 4
# Tokens that a grammar forces are decoded together, this many at once.
_MAX_FORCED = 32
# Gains smaller than this are lost in what is not reckoned with.
_WORTH = 1.1


class Speculation:
    """Chooses guesses.

    Args:
        max_guess: Tokens guessed at once for one request at most; 0 never guesses.
    """

    def __init__(self, max_guess: int) -> None:
        self._max_guess = max_guess
        self._costs = StepCosts()

    def guess(self, decoding: Sequence[Running], room: int, n_ctx: int) -> None:
        """Set the guesses of the requests that decode in this step.

        Args:
            decoding: These requests.
            room: Rows of the batch that guesses may take.
            n_ctx: Tokens that one sequence may hold.
        """
        if not self._max_guess or len(decoding) > MAX_GUESSING:
            return
        n_rows, expected = len(decoding), float(len(decoding))
        for request in decoding:
            limit = min(room, _n_useful(request, n_ctx))
            if request.job.matcher is not None:
                # What a grammar forces (names in a JSON object) is nearly always right. What the text suggests is not:
                # the names stand in the prompt's schema too, and something else follows them there.
                request.guesses = request.job.matcher.forced()[: max(0, min(limit, _MAX_FORCED))]
                gain = float(len(request.guesses))
            else:
                request.lookup.follow(request.tokens)
                chances = request.lookup.chances(min(limit, self._max_guess))
                n, gain = self._best(chances, n_rows, expected)
                request.guesses = request.lookup.guess(n)
            room -= len(request.guesses)
            n_rows += len(request.guesses)
            expected += gain

    def learn(self, n_rows: int, seconds: float) -> None:
        """Take note of a step that only decoded ``n_rows``, guesses included."""
        if self._max_guess and n_rows <= MAX_GUESSING * (1 + self._max_guess):
            self._costs.learn(n_rows, seconds)

    def _best(self, chances: Sequence[float], n_rows: int, expected: float) -> tuple[int, float]:
        """The length that makes the most tokens a second, and the tokens it is expected to gain.

        Args:
            chances: How likely the first guess is right, the first two are, …
            n_rows: Rows in the batch so far.
            expected: Tokens that they are expected to give.
        """
        plain = self._costs.seconds(n_rows)
        if not plain:
            return 0, 0.0
        best_rate, best = _WORTH * expected / plain, (0, 0.0)
        gain = 0.0
        for n, chance in enumerate(chances, 1):
            gain += chance
            rate = (expected + gain) / self._costs.seconds(n_rows + n)
            if rate > best_rate:
                best_rate, best = rate, (n, gain)
        return best


def _n_useful(request: Running, n_ctx: int) -> int:
    """Tokens that may be guessed for ``request`` before its end; the step itself gives one more."""
    n_left = n_ctx - len(request.tokens)
    if request.n_left is not None:
        n_left = min(n_left, request.n_left)
    return max(0, n_left - 1)
