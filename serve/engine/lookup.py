"""Guessing the next tokens from the text so far (prompt lookup decoding).

Answers that quote their prompt, rewrite code or fill a form repeat long runs of tokens. A pointer walks along the
earlier text for as long as the answer agrees with it; what stands behind the pointer is the guess. How far the two
have agreed says how likely they go on to, and that is learned at every token, whether it was guessed or not: so it
costs nothing to find out that guessing does not pay.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

_N = 3  # tokens that must agree; shorter matches are mostly chance
_PLACES = 8  # of the same three tokens, the latest ones
_LONGEST = 32  # a longer agreement says nothing more
# Where the pointer lost its way, the text may go on after what was replaced: a renamed variable, a mended word.
_REPLACED = 8
# Two tokens behind the replaced ones that agree count for this many, if as many agreed before.
_REGAINED = 9
# How likely the next token agrees after an agreement of at least so many tokens, before anything is known.
_BOUNDS = (_N, 4, 6, 9, 16, _LONGEST)
_CHANCES = (0.55, 0.5, 0.7, 0.88, 0.94, 0.96, 0.975)
_PRIOR = 6.0  # tokens that the numbers above count for
_MEMORY = 0.98  # what a token seen counts for after the next
_DECAY = 0.8  # what a guess counts for after the next


class Lookup:
    """Guesses for one request."""

    def __init__(self) -> None:
        self._tokens: Sequence[int] = ()
        self._n_seen = 0
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._place = 0  # of the token that is expected next; 0 expects none
        self._length = 0  # tokens before it that agree
        self._lost: tuple[int, int] | None = None  # where the pointer lost its way, and when
        self._regained = 0  # what the agreement counts for when it is found again
        self._credit = 0  # the same, from the next token that agrees
        self._guessed: list[int] = []  # the last guess, judged when the next tokens are known
        self._gained = self._hoped = _PRIOR  # tokens of guesses that were right, and that were expected to be
        self._right = [chance * _PRIOR for chance in _CHANCES]
        self._all = [_PRIOR] * len(_CHANCES)

    def follow(self, tokens: Sequence[int]) -> None:
        """Take note of the text so far.

        Args:
            tokens: Prompt and answer so far; a longer version of what was given before.
        """
        self._judge(tokens)
        if not self._n_seen:
            for end in range(_N, len(tokens)):
                self._remember(tokens, end)
            self._place, self._length = self._longest_match(tokens, len(tokens))
        else:
            for end in range(self._n_seen, len(tokens)):
                self._take(tokens, end)
        self._tokens, self._n_seen = tokens, len(tokens)

    def guess(self, n: int) -> list[int]:
        """The ``n`` tokens that may follow; none where nothing is expected."""
        if not self._place:
            return []
        # Where the pointer is near the end, the text goes round in circles.
        period = self._n_seen - self._place
        self._guessed = [self._tokens[self._place + i % period] for i in range(n)]
        return self._guessed.copy()

    def chances(self, n: int) -> list[float]:
        """How likely the first guess is right, the first two are, … all ``n`` are; empty where nothing is expected."""
        if not self._place:
            return []
        # What follows a wrong guess is no matter of chance: guesses that disappointed are trusted less, as a whole.
        trust = min(1.0, self._gained / self._hoped)
        steps = (self._chance(self._length + i) for i in range(n))
        return list(accumulate(steps, mul, initial=trust))[1:]

    def _chance(self, length: int) -> float:
        kind = bisect_right(_BOUNDS, length)
        return self._right[kind] / self._all[kind]

    def _judge(self, tokens: Sequence[int]) -> None:
        """Compare the last guess with what has come since."""
        if not self._guessed:
            return
        chances = accumulate((self._chance(self._length + i) for i in range(len(self._guessed))), mul)
        pairs = zip(self._guessed, tokens[self._n_seen :], strict=False)
        n_right = next((i for i, (guess, token) in enumerate(pairs) if guess != token), len(self._guessed))
        self._hoped = _DECAY * self._hoped + sum(chances)
        self._gained = _DECAY * self._gained + n_right
        self._guessed = []

    def _take(self, tokens: Sequence[int], end: int) -> None:
        """Compare ``tokens[end]`` with what was expected, and move the pointer."""
        token = tokens[end]
        # The three tokens before it are known to be followed by something only now.
        self._remember(tokens, end)
        if self._place:
            agrees = tokens[self._place] == token
            kind = bisect_right(_BOUNDS, self._length)
            self._right[kind] = _MEMORY * self._right[kind] + agrees
            self._all[kind] = _MEMORY * self._all[kind] + 1
            if agrees:
                self._place += 1
                self._length = min(max(self._length + 1, self._credit), _LONGEST)
                self._credit = 0
                return
            if self._length >= _N:
                self._lost = (self._place, end)
                self._regained = min(self._length, _REGAINED)
            self._credit = 0
        self._place, self._length = self._longest_match(tokens, end + 1)
        if not self._place:
            self._place, self._length = self._resume(tokens, end)
            self._credit = self._regained if self._place else 0

    def _remember(self, tokens: Sequence[int], end: int) -> None:
        if end < _N:
            return
        places = self._places.setdefault(tuple(tokens[end - _N : end]), [])
        places.append(end)
        if len(places) > _PLACES:
            del places[0]

    def _longest_match(self, tokens: Sequence[int], end: int) -> tuple[int, int]:
        """Where the longest earlier copy of the tokens before ``end`` ends, the latest of the longest; its length."""
        best = (0, 0)
        for place in reversed(self._places.get(tuple(tokens[end - _N : end]), ())):
            length = _N
            while length < min(place, _LONGEST) and tokens[place - 1 - length] == tokens[end - 1 - length]:
                length += 1
            if length > best[1]:
                best = (place, length)
        return best

    def _resume(self, tokens: Sequence[int], end: int) -> tuple[int, int]:
        """The place behind ``tokens[end]`` shortly after where the pointer lost its way."""
        if self._lost is None:
            return 0, 0
        place, since = self._lost
        if end - since > _REPLACED:
            self._lost = None
            return 0, 0
        for candidate in range(place + 1, min(place + 1 + _REPLACED, end)):
            if tokens[candidate] == tokens[end]:
                return candidate + 1, 1
        return 0, 0
