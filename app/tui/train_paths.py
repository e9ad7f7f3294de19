"""Paths as a person types, pastes or drops them. What touches the disk says so: call it in a thread."""

import os
import shlex
from collections.abc import Sequence
from itertools import islice
from os.path import commonprefix
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.cli.output import human_bytes
from localllm.typed_paths import is_there

_SHOWN = 8
_LOOKED_AT = 5000  # entries of a directory
_SPECIAL = frozenset(" \t'\"\\")


def split_paths(text: str) -> tuple[str, ...]:
    r"""The paths in a line, absolute where they are there; reads the disk.

    A terminal writes a file that is dropped on it as ``'/a b/c.jsonl'``, ``/a\ b/c.jsonl`` or ``file:///a%20b/c.jsonl``,
    several with spaces or line ends between. A path with spaces that is there as it stands is one path.
    """
    text = text.strip()
    if not text:
        return ()
    if _exists(text):
        return (_absolute(text),)
    if "\n" in text:
        return tuple(dict.fromkeys(path for line in text.split("\n") for path in split_paths(line)))
    try:
        words = shlex.split(text, comments=False)
    except ValueError:
        words = [text]  # a quote that is part of a name
    return tuple(dict.fromkeys(_absolute(word) for word in words if word))


def join_paths(paths: Sequence[str]) -> str:
    """Paths as one line that :func:`split_paths` reads again."""
    return shlex.join(paths)


def complete(text: str) -> tuple[str, tuple[str, ...]]:
    """Complete the last path of a line, as a shell does; reads the disk.

    Returns:
        The line, longer where all that fits begins alike; and some of the names that fit, where there are several.
    """
    head, word = _last_word(text)
    directory, _, start = word.rpartition("/")
    where = Path(_expanded(f"{directory}/")) if "/" in word else Path()
    names = _names(where, start)
    if not names:
        return text, ()
    common = commonprefix(names)  # noqa: RUF071  characters are what is meant
    if len(common) > len(start) or len(names) == 1:
        text = head + _escaped(f"{directory}/{common}" if "/" in word else common)
    return text, tuple(names[:_SHOWN]) if len(names) > 1 else ()


def describe_paths(paths: Sequence[str]) -> str:
    """``2 files, 3.1 MB``, and what would be fetched; reads the disk.

    Raises:
        DataError: There is no such file, or a directory holds none that can be read.
    """
    from finetune.data.files import find_files  # deferred: csv and json, 20 ms
    from localllm.models.sources.hub_rows import HubRows

    named = [path for path in paths if not _exists(path) and HubRows.parse(path)]
    local = [path for path in paths if path not in named]
    about = []
    if local:
        files, _ = find_files(local)
        size = sum(file.path.stat().st_size for file in files)
        about.append(f"{len(files)} file{'' if len(files) == 1 else 's'}, {human_bytes(size)}")
    if named:
        about.append(f"{', '.join(named)}: no file here, to be fetched from the Hugging Face hub")
    return "; ".join(about)


def _exists(word: str) -> bool:
    return is_there(_expanded(word))


def _absolute(word: str) -> str:
    path = _expanded(word)
    return str(Path(path).absolute()) if _exists(word) else path


def _expanded(word: str) -> str:
    if word.startswith("file://"):
        word = unquote(urlsplit(word).path)
    return os.path.expanduser(word) if word.startswith("~") else word  # noqa: PTH111  Path drops a last slash


def _escaped(path: str) -> str:
    """As a shell reads it while it is being written."""
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in path)


def _last_word(text: str) -> tuple[str, str]:
    """What stands before the last path of a line, and that path without its quoting."""
    start, quote, skip = 0, "", False
    word = ""
    for place, char in enumerate(text):
        if skip:
            word, skip = word + char, False
        elif char == "\\" and quote != "'":
            skip = True
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif not quote and char == " ":
            start, word = place + 1, ""
        else:
            word += char
    return text[:start], word


def _names(directory: Path, start: str) -> list[str]:
    """Entries that begin so, directories with a slash; none that a line of text cannot hold."""
    try:
        with os.scandir(directory) as entries:
            found = [
                f"{entry.name}/" if entry.is_dir() else entry.name
                for entry in islice(entries, _LOOKED_AT)
                if entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith("."))
            ]
    except (OSError, ValueError):
        return []
    return sorted(name for name in found if name.isprintable())
