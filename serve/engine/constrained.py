"""Samples inside a grammar.

Most tokens that a model wants are allowed anyway, so the whole vocabulary is tried first and only the one candidate
is tested (about a microsecond, against a hundred for the mask). On a reject the sampler chooses again among the
allowed tokens alone. That gives each of them the probability it would have had with the mask from the start: its own
share, and its part of what was rejected. The chain accepts the one token that is kept, so its penalties never see a
rejected one.
"""

import ctypes
from typing import Any

import llama_cpp as lib
import numpy as np

from serve.engine.constraint_types import TokenMatcher
from serve.engine.logprobs import Logits

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """llama.cpp's array of candidates, kept between tokens.

    Args:
        n_vocab: Size of the vocabulary.
    """

    def __init__(self, n_vocab: int) -> None:
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._rows = np.zeros(n_vocab, _CANDIDATE)
        self._data = self._rows.ctypes.data_as(lib.llama_token_data_p)

    def sample(self, chain: Any, logits: Logits, matcher: TokenMatcher) -> int:
        """Choose a token that ``matcher`` allows, and let the chain accept it; the matcher is left as it is.

        Args:
            chain: llama.cpp's sampler.
            logits: float32 of shape (n_vocab,).
            matcher: Not finished.

        Raises:
            RequestError: The grammar has become too complex.
        """
        token = self._apply(chain, self._ids, logits)
        if not matcher.allows(token):
            allowed = matcher.allowed()
            token = self._apply(chain, allowed, logits[allowed])
        lib.llama_sampler_accept(chain, token)
        return token

    def _apply(self, chain: Any, ids: np.ndarray[Any, Any], logits: Logits) -> int:
        n = len(ids)
        self._rows["id"][:n] = ids
        self._rows["logit"][:n] = logits
        candidates = lib.llama_token_data_array(data=self._data, size=n, selected=-1, sorted=False)
        lib.llama_sampler_apply(chain, ctypes.byref(candidates))
        # The samplers may have sorted and shortened the rows, or put them elsewhere.
        return int(candidates.data[candidates.selected].id)
