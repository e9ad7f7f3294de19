"""Guessing the next tokens from the text so far (prompt lookup decoding).

Answers that quote their prompt, rewrite code or fill a form repeat long runs of tokens. When the last three tokens
have been seen before, what followed them then is decoded as a guess in the same batch; the sampler then says how much
of it was right. A guess costs rows, so its length follows its luck, and bad luck silences it for a while.
"""

from collections.abc import Sequence

_N = 3  # tokens that must agree; shorter matches are mostly chance
_FIRST_GUESS = 4
_PAUSE = 24  # tokens without guesses after too many wrong ones
_MIN_LUCK = 0.4  # below this share of right guesses a longer batch costs more than it saves
_MEMORY = 0.8  # how much the past weighs in the share


class Lookup:
    """Guesses for one request.

    Args:
        max_guess: Tokens guessed at once at most; 0 never guesses.
    """

    def __init__(self, max_guess: int) -> None:
        self._max_guess = max_guess
        self._length = min(_FIRST_GUESS, max_guess)
        self._luck = 1.0
        self._pause = 0
        self._places: dict[tuple[int, ...], int] = {}
        self._n_indexed = _N

    def guess(self, tokens: Sequence[int], limit: int) -> list[int]:
        """What may follow ``tokens``, at most ``limit`` of them; often nothing.

        Args:
            tokens: Prompt and answer so far; a longer version of what was given before.
            limit: Room for the guess.
        """
        if self._max_guess == 0:
            return []
        # The n-gram at the very end is not indexed: it is what is looked up.
        for end in range(self._n_indexed, len(tokens)):
            self._places[tuple(tokens[end - _N : end])] = end
        self._n_indexed = max(self._n_indexed, len(tokens))
        if self._pause:
            self._pause -= 1
            return []
        place = self._places.get(tuple(tokens[-_N:]))
        return list(tokens[place : place + min(self._length, limit)]) if place is not None and limit > 0 else []

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Take note of how a guess went."""
        if not n_guessed:
            return
        self._luck = _MEMORY * self._luck + (1 - _MEMORY) * n_right / n_guessed
        if n_right == n_guessed:
            self._length = min(2 * self._length, self._max_guess)
        else:
            self._length = max(1, min(n_right + 1, self._max_guess))
        if self._luck < _MIN_LUCK:
            self._pause, self._luck = _PAUSE, (1 + _MIN_LUCK) / 2
