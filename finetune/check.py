"""``localllm finetune --check``: what is in the data, as a model would learn it, without training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from finetune.data.dataset import DataReport, Dataset, scan
from finetune.data.files import Found
from finetune.data.formatter import ChatFormatter
from finetune.examples import Example
from finetune.recipe import Recipe
from finetune.tokenizer import load_tokenizer
from localllm.models.store import ModelStore

_PREVIEWS = 3
_FIRST_BIN = 32  # tokens


@dataclass(frozen=True)
class Piece:
    """Text of neighbouring tokens, all learnt or none."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Preview:
    """A row as the model sees it."""

    source: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Bin:
    """Examples of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        model: The model's name.
        data: Shapes, duplicates, bad rows, rows cut.
        n_train, n_valid: Examples of each side.
        n_tokens: Of both sides, after cutting.
        n_learnt: Tokens among those that are learnt.
        histogram: Tokens of an example before it was cut; each bin is twice as wide as the one before.
        previews: The first, the middle and the last example.
        sha256: Of the rows that are used.
    """

    model: str
    data: DataReport
    n_train: int
    n_valid: int
    n_tokens: int
    n_learnt: int
    histogram: tuple[Bin, ...]
    previews: tuple[Preview, ...]
    sha256: str


def check(
    recipe: Recipe,
    store: ModelStore,
    *,
    found: Found | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> CheckReport:
    """Read, format and count a recipe's data; bad rows are reported, not refused.

    Args:
        recipe: Names model and data.
        store: Has the model; a GGUF file serves as it is.
        found: The data's files, where they were looked up before.
        progress: Told what, how many, of how many.

    Raises:
        DataError: A file is not there, or cannot be read at all.
        ModelNotFoundError: There is no such model.
        InvalidModelError: Its tokenizer cannot be read.
    """
    manifest = store.resolve(recipe.model)
    formatter = ChatFormatter(load_tokenizer(store, manifest), recipe.train_on)
    data = scan(recipe, formatter, found=found, progress=progress)
    return report_of(str(manifest.model_name), data, formatter)


def report_of(model: str, data: Dataset, formatter: ChatFormatter) -> CheckReport:
    """The report about data that was read."""
    examples = [*data.train, *data.valid]
    shown = sorted({0, len(data.train) // 2, len(data.train) - 1})[:_PREVIEWS] if data.train else []
    return CheckReport(
        model=model,
        data=data.report,
        n_train=len(data.train),
        n_valid=len(data.valid),
        n_tokens=sum(len(example.tokens) for example in examples),
        n_learnt=sum(example.n_supervised for example in examples),
        histogram=histogram(data.report.lengths),
        previews=tuple(preview(data.train[number], formatter) for number in shown),
        sha256=data.sha256,
    )


def histogram(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """Counts of ``lengths`` in bins that double: 1-32, 33-64, 65-128, …; without empty ones at either end."""
    bins = []
    low, high = 1, _FIRST_BIN
    longest = max(lengths, default=0)
    while low <= longest:
        bins.append(Bin(low, high, sum(low <= length <= high for length in lengths)))
        low, high = high + 1, high * 2
    while bins and not bins[0].count:
        bins.pop(0)
    return tuple(bins)


def preview(example: Example, formatter: ChatFormatter) -> Preview:
    """The text of ``example``, apart where learning begins or ends. Its first token is never learnt."""
    learnt = np.array([False, *example.supervised[1:]])
    starts = [0, *(np.flatnonzero(learnt[1:] != learnt[:-1]) + 1).tolist(), len(learnt)]
    pieces = []
    for start, end in pairwise(starts):
        text = formatter.tokenizer.decode(example.tokens[start:end], clean_up_tokenization_spaces=False)
        pieces.append(Piece(str(text), bool(learnt[start])))
    return Preview(example.source, tuple(pieces))
