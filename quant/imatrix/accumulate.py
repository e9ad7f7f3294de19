"""Sums of squared inputs by weight, as they come from llama.cpp or from MLX."""

from typing import Any

import numpy as np

from localllm.errors import QuantizeError
from quant.imatrix.file import ImatrixEntry, ImportanceMatrix

Array = np.ndarray[Any, np.dtype[Any]]


class Accumulator:
    """The statistics of all weights, in float64: millions of squares would drown each other in float32."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._counts: dict[str, Array] = {}

    def add(self, name: str, sums: Array, counts: Array) -> None:
        """Add sums of shape (n_counts, n_in) over ``counts`` tokens, of shape (n_counts,).

        Raises:
            QuantizeError: The sums are not finite.
        """
        if not np.isfinite(sums).all():
            raise QuantizeError(
                f"The inputs of {name} are not finite: the model computes nonsense on this text.",
                "The model may be damaged; try another one of the same family.",
            )
        if name in self._sums:
            self._sums[name] += sums
            self._counts[name] += counts
        else:
            self._sums[name] = np.array(sums, np.float64)
            self._counts[name] = np.array(counts, np.int64)

    def add_routed(self, name: str, squares: Array, experts: Array, n_experts: int) -> None:
        """Add rows that were routed to experts.

        Args:
            name: The stack of experts.
            squares: Squared inputs, of shape (n_rows, n_in).
            experts: The expert of each row, of shape (n_rows,).
            n_experts: Experts in the stack.
        """
        chosen = np.zeros((n_experts, experts.size), np.float64)
        chosen[experts, np.arange(experts.size)] = 1
        self.add(name, chosen @ squares, np.bincount(experts, minlength=n_experts))

    def matrix(self, datasets: tuple[str, ...], chunk_size: int) -> ImportanceMatrix:
        """What was measured.

        Raises:
            QuantizeError: Nothing was.
        """
        if not self._sums:
            raise QuantizeError("Nothing of this model could be measured.", "Its architecture may be too unusual.")
        entries = {name: ImatrixEntry(sums.astype(np.float32), self._counts[name]) for name, sums in self._sums.items()}
        most = max(int(counts.max()) for counts in self._counts.values())
        return ImportanceMatrix(entries, datasets, most // chunk_size, chunk_size)
