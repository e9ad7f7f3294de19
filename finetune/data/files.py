"""Reading rows from JSONL, JSON, CSV and Parquet files, each row with the place it came from."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from localllm.errors import DataError, UsageError
from localllm.models.sources.hub_rows import FetchedRows
from localllm.typed_paths import is_directory, is_file

Part = Literal["train", "valid"]

_VALID, _TEST = ("valid", "validation", "val", "dev"), ("test",)
_MAGIC = {
    b"GGUF": "a GGUF model",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive (or an Office document)",
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"SQLi": "an SQLite database",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"\x7fELF": "a program",
}
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its file.

    Attributes:
        fields: What it holds.
        source: File name and line (or row) number: ``chats.jsonl:12``.
        part: Which side the file itself puts it on; ``train`` where it does not say.
    """

    fields: dict[str, Any]
    source: str
    part: Part = "train"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be learnt from, and why."""

    source: str
    reason: str


Read = RawRow | BadRow
Found = tuple[list["DataFile"], list[str]]


@dataclass(frozen=True)
class DataFile:
    """A file, and the side that its name puts its rows on."""

    path: Path
    part: Part


def find_files(given: Sequence[str], fetched: Mapping[str, FetchedRows] | None = None) -> Found:
    """The files that are meant, and remarks about what was left out.

    Args:
        given: Files, directories, names of data sets.
        fetched: The data sets, by the names that were given.

    Raises:
        DataError: There is no such file, or a directory cannot be read, or holds none that can.
    """
    files: list[DataFile] = []
    notes: list[str] = []
    for text in given:
        path = Path(text)
        if is_file(path):
            files.append(DataFile(path, "train"))
        elif is_directory(path):
            try:
                inside = sorted(entry for entry in path.iterdir() if _is_data(entry))
            except OSError as error:
                raise DataError(f"The directory {path} cannot be read: {error.strerror}.") from error
            for entry in inside:
                stem = entry.stem.lower()
                if stem in _TEST:
                    notes.append(f"{entry.name} is left out: it is for a test afterwards.")
                else:
                    files.append(DataFile(entry, "valid" if stem in _VALID else "train"))
            if not inside:
                raise DataError(f"The directory {path} holds no data file.", f"Files end in {', '.join(_READERS)}.")
        elif fetched and text in fetched:
            found = fetched[text]
            files.extend(DataFile(path, "valid" if part == "valid" else "train") for path, part in found.files)
            count = f"{len(found.files)} file{'s' if len(found.files) > 1 else ''}"
            notes.append(f"{text} is a data set of the Hugging Face hub: {count}, commit {found.commit[:12]}.")
        else:
            raise DataError(f"There is no file or directory {text}.", "Check the path.")
    if not any(file.part == "train" for file in files):
        raise DataError("There is no file to train on, only held-out ones.", "Name one train.jsonl, for example.")
    return files, notes


def _is_data(entry: Path) -> bool:
    # Hidden: macOS puts a ._train.jsonl of its own beside a train.jsonl on drives of other kinds.
    return entry.suffix.lower() in _READERS and not entry.name.startswith(".") and is_file(entry)


def read_rows(file: DataFile) -> Iterator[Read]:
    """The rows of a file, good and bad.

    Raises:
        DataError: It cannot be read at all, is empty, or is of another kind.
    """
    path = file.path
    reader = _READERS.get(path.suffix.lower())
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            head = handle.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if not size:
        raise DataError(f"{path.name} is empty.")
    if kind := _wrong_kind(head, wants_parquet=reader is _parquet):
        raise DataError(f"{path.name} is {kind}, not a data file.")
    if reader is None:
        raise DataError(f"{path.name} is of no known kind.", f"Files end in {', '.join(_READERS)}.")
    n_rows = 0
    try:
        for row in reader(path):
            n_rows += 1
            yield RawRow(row.fields, row.source, file.part) if isinstance(row, RawRow) else row
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 text: {_wrong_byte(path)} is wrong.", "Save it as UTF-8, or name it rightly."
        ) from error
    if not n_rows:
        raise DataError(f"{path.name} holds no rows.")


def _wrong_byte(path: Path) -> str:
    """The place of the first byte that is no UTF-8; whoever reads a block at a time knows its place in there only."""
    data = path.read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"byte {error.start} (line {line})"
    return "a byte"  # no more: somebody has written the file anew


def _wrong_kind(head: bytes, *, wants_parquet: bool) -> str:
    """What a file that begins with ``head`` is; empty where it may be what its name says."""
    if head == _PARQUET:
        return "" if wants_parquet else "a Parquet file by another name"
    return _MAGIC.get(head) or _MAGIC.get(head[:2]) or ("no Parquet file" if wants_parquet else "")


def _jsonl(path: Path) -> Iterator[Read]:
    with path.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                yield _parsed(line, f"{path.name}:{number}")


def _parsed(line: str, source: str) -> Read:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(source, f"it is no JSON ({str(error).split(':')[0].lower()})")
    return RawRow(fields, source) if isinstance(fields, dict) else BadRow(source, "it is no JSON object")


def _json(path: Path) -> Iterator[Read]:
    text = path.read_text(encoding="utf-8-sig")
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "{":
        raise DataError(
            f"{path.name} holds an object where a list of rows is wanted.",
            "Put the rows into [ ]; where there is one a line, let the file's name end in .jsonl.",
        )
    if text[start : start + 1] != "[":
        raise DataError(f"{path.name} is no JSON list of rows.", "Put the rows into [ ].")
    decoder = json.JSONDecoder()
    place, line, counted = start + 1, 1, 0
    while place < len(text):
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        line += text.count("\n", counted, place)
        counted = place
        if text[place : place + 1] == "]":
            if text[place + 1 :].strip():
                yield BadRow(f"{path.name}:{line}", "the list ends here, and more follows")
            return
        if place == len(text):
            break
        try:
            fields, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield BadRow(f"{path.name}:{line}", f"the list breaks off: {str(error).split(':')[0].lower()}")
            return
        source = f"{path.name}:{line}"
        yield RawRow(fields, source) if isinstance(fields, dict) else BadRow(source, "it is no JSON object")
    yield BadRow(f"{path.name}:{line}", "the list breaks off: its ] is missing")


def _csv(path: Path) -> Iterator[Read]:
    csv.field_size_limit(1 << 30)
    text = path.read_text(encoding="utf-8-sig").replace("\0", "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Strict: else a quotation mark that is never closed makes one field of all that follows.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        first = lines.line_num + 1
        try:
            values = next(lines, None)
        except csv.Error as error:
            if not names:
                raise DataError(f"{path.name} has no first line of names: its quotation marks are wrong.") from error
            yield BadRow(f"{path.name}:{first}", f"its quotation marks are wrong: {error}")
            continue
        source = f"{path.name}:{lines.line_num}"
        if values is None:
            return
        if not names:
            names = values
        elif values and len(values) != len(names):
            yield BadRow(source, f"it has not the {len(names)} columns of the first line")
        elif values:
            yield RawRow(dict(zip(names, values, strict=True)), source)


def _parquet(path: Path) -> Iterator[Read]:
    try:
        from pyarrow import ArrowException, parquet  # deferred: optional, 170 MB
    except ImportError:
        raise UsageError(f"Reading {path.name} needs pyarrow.", "Install it: pip install pyarrow") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield RawRow(fields, f"{path.name}, row {number}")
    except (ArrowException, OSError) as error:
        raise DataError(f"{path.name} is damaged after row {number}: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path], Iterator[Read]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip
