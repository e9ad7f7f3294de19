"""All rows of a recipe's data, read, checked, split and turned into token ids."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.data.files import BadRow, Found, RawRow, find_files, read_rows
from finetune.data.formatter import ChatFormatter
from finetune.data.rows import Chat, Completion, Message, Row, RowError, read_row
from finetune.examples import Example
from finetune.recipe import Recipe
from localllm.errors import DataError

_SHOWN = 5
_PROMPTS = 16
_MIN_FOR_VALID = 10


@dataclass(frozen=True)
class DataReport:
    """What was found in the data.

    Attributes:
        shapes: Good rows of each shape.
        n_duplicates: Rows that say what another says, left out.
        n_cut: Examples longer than the limit.
        bad: Rows that cannot be learnt from.
        notes: Files left out, and the like.
        lengths: Tokens of each example, before it was cut.
    """

    shapes: dict[str, int]
    n_duplicates: int
    n_cut: int
    bad: tuple[BadRow, ...]
    notes: tuple[str, ...]
    lengths: tuple[int, ...]

    def lines(self) -> list[str]:
        """For a person, without the bad rows' list."""
        shapes = ", ".join(f"{count} {shape}" for shape, count in sorted(self.shapes.items()))
        lines = [f"Rows: {shapes or 'none that can be learnt from'}.", *self.notes]
        if self.n_duplicates:
            lines.append(f"{self.n_duplicates} rows say what another says, and are left out.")
        if self.n_cut:
            lines.append(f"{self.n_cut} examples are longer than the limit, and are cut at the end.")
        if self.bad:
            lines.append(f"Bad rows: {len(self.bad)}.")
        return lines

    def named_bad(self, most: int) -> list[str]:
        """The first so many bad rows, each with what is wrong with it, and how many more there are."""
        named = [f"{row.source}: {row.reason}" for row in self.bad[:most]]
        more = len(self.bad) - most
        return [*named, f"and {more} more"] if more > 0 else named


@dataclass(frozen=True)
class Dataset:
    """Data ready for training.

    Attributes:
        train, valid: The examples of each side.
        report: What was found.
        prompts: Chats without their last answer, held-out ones first, for samples.
        sha256: Of all rows that are used, in hex.
    """

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    report: DataReport
    prompts: tuple[tuple[Message, ...], ...]
    sha256: str


@dataclass(frozen=True)
class _Numbered:
    number: int
    row: Row
    raw: RawRow


def load_dataset(
    recipe: Recipe,
    formatter: ChatFormatter,
    *,
    found: Found | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Dataset:
    """Read a recipe's data.

    Args:
        recipe: Names the data.
        formatter: Of the model.
        found: What :func:`find_files` found, where data sets of the hub are to be fetched at another time.
        progress: Told what, how many, of how many.
        check_cancelled: Called now and then.

    Raises:
        DataError: A file cannot be read, or rows are bad and the recipe does not say to skip them.
    """
    data = scan(recipe, formatter, found=found, progress=progress, check_cancelled=check_cancelled)
    bad = data.report.bad
    if bad and not recipe.skip_bad:
        shown = "".join(f"\n  {line}" for line in data.report.named_bad(_SHOWN))
        raise DataError(
            f"{len(bad)} of the rows cannot be learnt from:{shown}",
            "Mend them, or leave them out with --skip-bad; --check shows all.",
        )
    if not data.train:
        raise DataError("No row is left to train on.", "`localllm finetune … --check` says why.")
    return data


def scan(
    recipe: Recipe,
    formatter: ChatFormatter,
    *,
    found: Found | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Dataset:
    """As :func:`load_dataset`, with bad rows reported and not refused."""
    files, notes = found or find_files(recipe.data)
    bad: list[tuple[int, BadRow]] = []  # with the row's number among all, so that they stand in the files' order
    rows: dict[str, _Numbered] = {}
    n_duplicates = 0
    for number, raw in enumerate((raw for file in files for raw in read_rows(file)), 1):
        if number % 256 == 0:
            check_cancelled()
            progress("rows read", number, None)
        if isinstance(raw, BadRow):
            bad.append((number, raw))
            continue
        try:
            row = read_row(raw.fields)
        except RowError as error:
            bad.append((number, BadRow(raw.source, str(error))))
            continue
        n_duplicates += row.key in rows
        rows.setdefault(row.key, _Numbered(number, row, raw))
    return _tokenize(recipe, formatter, rows, bad, notes, n_duplicates, progress, check_cancelled)


def _tokenize(
    recipe: Recipe,
    formatter: ChatFormatter,
    rows: dict[str, _Numbered],
    bad: list[tuple[int, BadRow]],
    notes: list[str],
    n_duplicates: int,
    progress: Callable[[str, int, int | None], None],
    check_cancelled: Callable[[], None],
) -> Dataset:
    valid_keys = _held_out(rows, recipe.valid_fraction)
    sides: dict[bool, list[Example]] = {False: [], True: []}
    prompts: dict[bool, list[tuple[Message, ...]]] = {False: [], True: []}
    lengths: list[int] = []
    shapes: Counter[str] = Counter()
    digest = hashlib.sha256()
    for done, (key, numbered) in enumerate(rows.items(), 1):
        if done % 64 == 0 or done == len(rows):
            check_cancelled()
            progress("rows made tokens", done, len(rows))
        row, raw = numbered.row, numbered.raw
        try:
            whole = formatter.examples(row.content, raw.source)
            examples = [_cut(example, recipe.max_length) for example in whole]
        except RowError as error:
            bad.append((numbered.number, BadRow(raw.source, str(error))))
            continue
        lengths.extend(len(example.tokens) for example in whole)
        shapes[row.shape] += 1
        digest.update(hashlib.sha256(key.encode()).digest())
        sides[key in valid_keys].extend(examples)
        prompts[key in valid_keys].extend(_prompt(row.content))
    report = DataReport(
        shapes=dict(shapes),
        n_duplicates=n_duplicates,
        n_cut=sum(length > recipe.max_length for length in lengths),
        bad=tuple(row for _, row in sorted(bad, key=lambda numbered: numbered[0])),
        notes=tuple(notes),
        lengths=tuple(lengths),
    )
    chosen = (prompts[True] + prompts[False])[:_PROMPTS]
    return Dataset(tuple(sides[False]), tuple(sides[True]), report, tuple(chosen), digest.hexdigest())


def _held_out(rows: dict[str, _Numbered], fraction: float) -> set[str]:
    """Keys of the held-out rows: those of files that are so, else those whose hash is low.

    A row's side depends on what it says alone, so it stays there when others are added.
    """
    by_file = {key for key, numbered in rows.items() if numbered.raw.part == "valid"}
    if by_file or not fraction:
        return by_file
    places = {key: int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 for key in rows}
    low = {key for key, place in places.items() if place < fraction}
    if not low and len(rows) >= _MIN_FOR_VALID:
        low = {min(places, key=places.__getitem__)}
    return low if len(low) < len(rows) else set()


def _cut(example: Example, longest: int) -> Example:
    if len(example.tokens) > longest:
        example = Example(example.tokens[:longest], example.supervised[:longest], example.source)
    if not example.n_supervised:
        raise RowError(f"no token to learn is left within {longest} tokens")
    return example


def _prompt(content: Any) -> list[tuple[Message, ...]]:
    """The chat up to its first answer."""
    match content:
        case Chat(messages, tools) if not tools:
            first = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
            return [tuple(messages[:first])]
        case Completion(prompt, _):
            return [({"role": "user", "content": prompt},)]
    return []
