"""How many tokens are guessed for whom: as many as make the most tokens a second.

A guess costs rows of the batch, a drafted one the draft model's time too, and gains what of it is right. The lookup
tells the chances of what it finds, past drafts those of the next, the measured steps tell the cost; where no length
pays, nothing is guessed, and what wrong guesses may cost is bounded in all. The text so far is asked first: it costs
nothing, and where it knows something it is better.
"""

from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import mul

from serve.engine.costs import StepCosts
from serve.engine.draft import Drafter
from serve.engine.request import Running

# Past this many requests a batch keeps the cores busy without guesses.
MAX_GUESSING = 4
# Tokens that a grammar forces are decoded together, this many at once.
_MAX_FORCED = 32
# Gains smaller than this are lost in what is not reckoned with.
_WORTH = 1.1
_LEAST = 0.05  # a token that is less likely than this to be right is worth no row on any machine
# After so many steps with guesses comes one without: what guesses are compared with must not grow old.
_RENEW = 16
MAX_LOSS = 0.01  # of the time; looking for guesses takes half as much again, where nothing is found
_MOST_ALLOWED = 8.0  # what may be saved up for wrong guesses, in steps without any: a wide step may take several
_LONGEST_DRAFT = 16
_PROBE = 4  # tokens drafted to find out whether drafts pay (again)
_PAUSE = 32  # steps without drafts where they do not pay; twice as many each time, up to …
_LONGEST_PAUSE = 2048
_MEMORY = 0.97  # what a drafted token counts for after the next


class Speculation:
    """Chooses guesses.

    What they may lose is bounded: guesses that were wrong are paid from an allowance, which a share of the time that is
    spent decoding earns. It is empty at first, so that nothing is guessed before steps were measured, and a guess is
    made only where the allowance covers it even if all of it is wrong.

    Args:
        max_guess: Tokens guessed at once from one request's text at most; 0 never does.
        drafter: The draft model, where there is one.
        costs: What steps take by their rows, told by the scheduler.
        max_loss: What wrong guesses may cost, as a share of the time spent decoding.
    """

    def __init__(
        self,
        max_guess: int,
        drafter: Drafter | None = None,
        costs: StepCosts | None = None,
        max_loss: float = MAX_LOSS,
    ) -> None:
        self._max_guess = max_guess
        self._costs = costs or StepCosts()
        self._max_loss = max_loss
        self._n_guessing = 0  # steps with guesses since the last one without
        self._drafts = Drafts(drafter) if drafter is not None else None
        self._allowances = [0.0] * (MAX_GUESSING + 1)  # seconds, by the number of requests that decode

    def guess(self, decoding: Sequence[Running], room: int, n_ctx: int) -> None:
        """Set the guesses of the requests that decode in this step.

        Args:
            decoding: These requests.
            room: Rows of the batch that guesses may take.
            n_ctx: Tokens that one sequence may hold.
        """
        if not (self._max_guess or self._drafts) or not 0 < len(decoding) <= MAX_GUESSING:
            return
        if self._drafts:
            self._drafts.take_spent()  # in a step that was not only decoding, so that nobody has asked
        if self._n_guessing == _RENEW:
            self._n_guessing = 0
            return
        n_streams = n_rows = len(decoding)
        expected = float(n_rows)
        without = []
        for request in decoding:
            limit = min(room, _n_useful(request, n_ctx))
            if request.job.matcher is not None:
                # What a grammar forces (names in a JSON object) is nearly always right. What the text suggests is not:
                # the names stand in the prompt's schema too, and something else follows them there.
                request.guesses = request.job.matcher.forced()[: min(limit, _MAX_FORCED)]
                gain = float(len(request.guesses))
            else:
                gain = self._look_up(request, min(limit, self._max_guess), n_streams, n_rows, expected)
                if not request.guesses and limit:
                    without.append(request)
            room -= len(request.guesses)
            n_rows += len(request.guesses)
            expected += gain
        if self._drafts and without:
            most = min(room // len(without), _LONGEST_DRAFT, *(_n_useful(request, n_ctx) for request in without))
            chances = self._drafts.chances(most)
            per_token = self._drafts.seconds(len(without))
            n, _ = self._best(chances, n_rows, expected, n_streams=len(without), draft_seconds=per_token)
            wide = n_rows + len(without) * (n or _PROBE)
            if self._affords(n_streams, wide, (n or _PROBE) * per_token):
                self._drafts.draft(without, n, most)
        self._n_guessing = self._n_guessing + 1 if any(request.guesses for request in decoding) else 0

    def learn(self, n_streams: int, n_rows: int, n_right: int, seconds: float) -> float:
        """Take note of a step that only decoded; return the seconds of it that went into drafts.

        Args:
            n_streams: Requests that decoded.
            n_rows: Rows, guesses included.
            n_right: Tokens that guesses brought besides one for each request.
            seconds: What all of it took.
        """
        if not (self._max_guess or self._drafts) or n_streams > MAX_GUESSING:
            return 0.0
        spent = self._drafts.take_spent() if self._drafts else 0.0
        plain = self._costs.seconds(n_streams)
        lost = seconds - plain * (n_streams + n_right) / n_streams if n_rows > n_streams or spent else 0.0
        allowance = self._allowances[n_streams] + self._max_loss * (seconds - lost) - lost
        self._allowances[n_streams] = min(allowance, _MOST_ALLOWED * plain)
        return spent

    def _affords(self, n_streams: int, n_rows: int, draft_seconds: float = 0.0) -> bool:
        """Whether a step of ``n_rows`` may turn out to bring no more than one without guesses."""
        worst = self._costs.seconds(n_rows) - self._costs.seconds(n_streams) + draft_seconds
        return worst < self._allowances[n_streams]

    def _look_up(self, request: Running, limit: int, n_streams: int, n_rows: int, expected: float) -> float:
        """Set the guesses that the text so far suggests; return the tokens that they are expected to gain."""
        if not self._max_guess:
            return 0.0
        request.lookup.follow(request.tokens)
        n, gain = self._best(request.lookup.chances(limit), n_rows, expected)
        if n and not self._affords(n_streams, n_rows + n):
            return 0.0
        request.guesses = request.lookup.guess(n)
        return gain

    def _best(
        self,
        chances: Sequence[float],
        n_rows: int,
        expected: float,
        *,
        n_streams: int = 1,
        draft_seconds: float = 0.0,
    ) -> tuple[int, float]:
        """The length that makes the most tokens a second, and the tokens it is expected to gain.

        Args:
            chances: How likely the first guess is right, the first two are, …
            n_rows: Rows in the batch so far.
            expected: Tokens that they are expected to give.
            n_streams: Requests that get a guess of this length.
            draft_seconds: What a token of them takes before the batch.
        """
        plain = self._costs.seconds(n_rows)
        if not plain:
            return 0, 0.0
        best_rate, best = _WORTH * expected / plain, (0, 0.0)
        gain = 0.0
        for n, chance in enumerate(chances, 1):
            if chance < _LEAST:
                break
            gain += n_streams * chance
            rate = (expected + gain) / (self._costs.seconds(n_rows + n_streams * n) + n * draft_seconds)
            if rate > best_rate:
                best_rate, best = rate, (n, gain)
        return best


class Drafts:
    """What is known about the draft model's guesses, and when to ask for one.

    How good they were is seen in the requests' own tokens at the next step.

    Args:
        drafter: Makes them.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._costs = StepCosts()
        self._right, self._all = 3.0, 4.0  # tokens drafted; before anything is known, three of four
        self._made: list[tuple[Running, int, list[int]]] = []
        self._spent = 0.0
        self._pause = _PAUSE
        self._silent = 0

    def chances(self, n: int) -> list[float]:
        """How likely the first token of a draft is right, the first two are, … all ``n`` are."""
        self._learn()
        return list(accumulate(repeat(self._right / self._all, n), mul))

    def seconds(self, n_streams: int) -> float:
        """What a drafted token takes for ``n_streams`` requests together."""
        return self._costs.seconds(n_streams)

    def draft(self, requests: Sequence[Running], n: int, most: int) -> None:
        """Draft ``n`` tokens for each of ``requests``; where none pay, some now and then, to see whether they would.

        Args:
            requests: Which have no guesses yet; they get them.
            n: Tokens that pay.
            most: Tokens that there is room for.
        """
        if n:
            self._pause = _PAUSE
        elif self._silent:
            self._silent -= 1
            return
        else:
            n = min(_PROBE, most)
            self._silent, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        if not n:
            return
        for request, guesses in zip(requests, self._drafter.draft(requests, n), strict=True):
            request.guesses = guesses
            self._made.append((request, len(request.tokens), guesses))
        self._spent += self._drafter.total_seconds
        if self._drafter.seconds:
            self._costs.learn(len(requests), self._drafter.seconds)

    def take_spent(self) -> float:
        """Seconds that drafts have taken since this was last asked."""
        spent, self._spent = self._spent, 0.0
        return spent

    def _learn(self) -> None:
        for request, start, guesses in self._made:
            for token, guess in zip(request.tokens[start:], guesses, strict=False):
                self._right = _MEMORY * self._right + (token == guess)
                self._all = _MEMORY * self._all + 1
                if token != guess:
                    break
        self._made.clear()


def _n_useful(request: Running, n_ctx: int) -> int:
    """Tokens that may be guessed for ``request`` before its end; the step itself gives one more."""
    n_left = n_ctx - len(request.tokens)
    if request.n_left is not None:
        n_left = min(n_left, request.n_left)
    return max(0, n_left - 1)
