"""Which documents share a row of a batch: best-fit packing, so that next to no token of a batch is padding.

A row holds several documents one after another; attention is kept inside each of them (:mod:`finetune.attention`).
Where an architecture forbids that, documents of about the same length share a batch instead, one a row.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.examples import Example, Int32s

# Documents are packed among this many neighbours of the shuffled order: enough to fill rows, few enough that every
# batch stays a fair sample.
WINDOW = 512


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put documents into as few rows as best-fit-decreasing finds.

    Args:
        lengths: Of each document, at most ``capacity``.
        capacity: Tokens of a row.

    Returns:
        Indices of the documents in each row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"a document of {length} tokens does not fit in a row of {capacity}")
        place = bisect_left(free, (length, -1))
        if place == len(free):
            insort(free, (capacity - length, len(rows)))
            rows.append([index])
        else:
            room, row = free.pop(place)
            rows[row].append(index)
            insort(free, (room - length, row))
    return rows


def row_capacity(lengths: Sequence[int], longest: int, step: int = 64) -> int:
    """A row length that wastes little.

    Attention costs the square of it, so it is as short as packing allows: the longest document, doubled while more
    than a tenth of the rows would be padding.

    Args:
        lengths: Of the documents, in tokens to be predicted from.
        longest: The limit that longer documents are cut to.
        step: Rows are a multiple of this.
    """
    capacity = min(max(lengths, default=step), longest)
    capacity = -(-capacity // step) * step
    sample = [min(length, capacity) for length in lengths[: 4 * WINDOW]]
    while capacity < longest:
        rows = pack(sample, capacity)
        if sum(sample) >= 0.9 * capacity * len(rows) or len(rows) == 1:
            break
        capacity = min(2 * capacity, -(-longest // step) * step)
    return capacity


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes. All arrays have shape (rows, row length).

    Attributes:
        inputs: int32 token ids; 0 in padding.
        targets: int32 ids of the tokens that follow.
        segments: int32: 1, 2, … for the documents of a row; 0 in padding.
        supervised: bool: the target counts.
    """

    inputs: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    targets: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    segments: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    supervised: np.ndarray[tuple[int, int], np.dtype[np.bool_]]

    @property
    def n_supervised(self) -> int:
        """Targets that count."""
        return int(self.supervised.sum())

    @property
    def n_tokens(self) -> int:
        """Positions that are no padding."""
        return int((self.segments > 0).sum())

    def every(self, first: int, step: int) -> "Batch":
        """Its rows ``first``, ``first + step``, and so on."""
        rows = slice(first, None, step)
        return Batch(self.inputs[rows], self.targets[rows], self.segments[rows], self.supervised[rows])


def make_batch(rows: Sequence[Sequence[Example]], capacity: int) -> Batch:
    """Lay documents out in rows of ``capacity`` positions, each document one shorter than its tokens."""
    shape = (len(rows), capacity)
    inputs, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    supervised = np.zeros(shape, np.bool_)
    for row, documents in enumerate(rows):
        start = 0
        for number, example in enumerate(documents, 1):
            tokens: Int32s = example.tokens
            end = start + len(tokens) - 1
            inputs[row, start:end], targets[row, start:end] = tokens[:-1], tokens[1:]
            segments[row, start:end] = number
            supervised[row, start:end] = example.supervised[1:]
            start = end
    return Batch(inputs, targets, segments, supervised)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a whole run, a function of its fields alone: a run resumed at any batch sees the same ones.

    Attributes:
        examples: The documents.
        rows: Rows of a batch.
        capacity: Positions of a row.
        packed: Several documents a row; else one, beside others of about its length.
        seed: Of the order.
    """

    examples: Sequence[Example]
    rows: int
    capacity: int
    packed: bool
    seed: int

    def epoch(self, number: int) -> list[list[list[int]]]:
        """The batches of an epoch: rows of indices into ``examples``."""
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.examples))
        rows: list[list[int]] = []
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            lengths = [len(self.examples[i].tokens) - 1 for i in window]
            if self.packed:
                packed = [[int(window[i]) for i in row] for row in pack(lengths, self.capacity)]
                rows.extend(packed[i] for i in rng.permutation(len(packed)))
            else:
                by_length = sorted(range(len(window)), key=lambda i: (lengths[i], i))
                rows.extend([int(window[i])] for i in by_length)
        batches = [rows[start : start + self.rows] for start in range(0, len(rows), self.rows)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``first`` on."""
        for rows in self.epoch(epoch)[first:]:
            documents = [[self.examples[i] for i in row] for row in rows]
            yield make_batch(documents, self._width(documents))

    def _width(self, documents: Sequence[Sequence[Example]], step: int = 32) -> int:
        # Packed rows all have one width, so a compiled step is traced once; others are as wide as they must be.
        if self.packed:
            return self.capacity
        longest = max(len(row[0].tokens) - 1 for row in documents)
        return -(-longest // step) * step
