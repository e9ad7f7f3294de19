"""What an export is checked on: rows that the adapter was not trained on, or a few chats where those are gone."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data.dataset import Dataset, load_dataset
from finetune.data.formatter import ChatFormatter
from finetune.data.rows import Chat, RowError, Text
from finetune.examples import Example, Int32s
from finetune.recipe import Recipe, read_recipe
from localllm.errors import DataError, UsageError

_MOST_PREDICTIONS = 1024
_ENOUGH_PREDICTIONS = 256
_LONGEST = 512  # tokens of a row; what comes later is left out

_CHATS = (
    ("Who are you, and what can you do for me?", "I am an assistant. I answer questions and help with writing."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a Python function that adds two numbers.", "```python\ndef add(a, b):\n    return a + b\n```"),
    ("A train goes 60 km in 45 minutes. How fast is it?", "60 km in 0.75 hours is 60 / 0.75 = 80 km/h."),
    ("Translate to German: Good morning, my friend.", "Guten Morgen, mein Freund."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so it reaches us from all sides."),
    ("Give me three colours as a list.", "1. Red\n2. Green\n3. Blue"),
    ("Summarise: the meeting was moved to Tuesday because two people are ill.", "The meeting is now on Tuesday."),
)


@dataclass(frozen=True)
class GateRows:
    """Rows, and which of their predictions are compared.

    Attributes:
        rows: Token ids of each, int32 of shape (n,).
        first: Of each row, the first position whose next token is compared.
        source: Where they come from, for a person.
    """

    rows: tuple[Int32s, ...]
    first: tuple[int, ...]
    source: str

    @property
    def n_predictions(self) -> int:
        """Positions that are compared."""
        return sum(len(row) - 1 - first for row, first in zip(self.rows, self.first, strict=True))


def gate_rows(adapter: Path, formatter: ChatFormatter) -> GateRows:
    """Rows for an adapter: those that its recipe held out, then those it was trained on, else a few chats.

    Args:
        adapter: Its directory; ``recipe.yaml`` and ``report.json`` are beside its weights if it was trained here.
        formatter: Of the model that it is for.
    """
    found = _own_rows(adapter, formatter)
    if found is not None and found.n_predictions:
        return found
    return _of_examples(_built_in(formatter), "built-in chats")


def _own_rows(adapter: Path, formatter: ChatFormatter) -> GateRows | None:
    """What the recipe names, where it is all still here."""
    try:
        recipe = read_recipe(adapter / "recipe.yaml")
        if not all(Path(item).exists() for item in recipe.data):
            return None
        data = load_dataset(recipe.model_copy(update={"skip_bad": True, "name": None}), formatter)
    except (UsageError, DataError):
        return None  # trained elsewhere, or the files are others now: the built-in chats do
    held_out = _of_examples(data.valid, f"held-out rows of {_named(recipe)}{_changed(adapter, data)}")
    if held_out.n_predictions >= _ENOUGH_PREDICTIONS:
        return held_out
    return _of_examples((*data.valid, *data.train), f"rows of {_named(recipe)}, held-out ones first")


def _named(recipe: Recipe) -> str:
    return ", ".join(Path(item).name for item in recipe.data)


def _changed(adapter: Path, data: Dataset) -> str:
    try:
        trained_on = json.loads((adapter / "report.json").read_bytes())["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if trained_on == data.sha256 else " (which have changed since the training)"


def _built_in(formatter: ChatFormatter) -> list[Example]:
    examples = []
    for question, answer in _CHATS:
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        try:
            examples += formatter.examples(Chat(turns, ()), "built-in")
        except RowError:  # there is no chat template, or one that wants other chats
            examples += formatter.examples(Text(f"{question}\n{answer}"), "built-in")
    return examples


def _of_examples(examples: tuple[Example, ...] | list[Example], source: str) -> GateRows:
    """The first so many predictions; of a row, those from its first answer on."""
    rows: list[Int32s] = []
    first: list[int] = []
    left = _MOST_PREDICTIONS
    for example in examples:
        tokens = example.tokens[:_LONGEST]
        start = max(0, int(np.argmax(example.supervised[1:])))
        if left <= 0 or start >= len(tokens) - 1:
            continue
        tokens = tokens[: start + 1 + left]
        rows.append(tokens)
        first.append(start)
        left -= len(tokens) - 1 - start
    return GateRows(tuple(rows), tuple(first), source)
