"""A training example after its text has become token ids."""

from dataclasses import dataclass

import numpy as np

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Example:
    """One document.

    Attributes:
        tokens: Token ids, int32 of shape (n,), at least two.
        supervised: bool of shape (n,): the model learns to predict these tokens. The first one is never predicted.
        source: Where the row came from: file and line.
    """

    tokens: Int32s
    supervised: Bools
    source: str = ""

    @property
    def n_supervised(self) -> int:
        """Tokens that are predicted in training."""
        return int(self.supervised[1:].sum())
