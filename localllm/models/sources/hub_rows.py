"""Data sets of the Hugging Face hub: ``[hf:]ORG/NAME[/CONFIG][:SPLIT][@REVISION]``, files of rows to learn from.

They are kept in the home as ``datasets/ORG--NAME/COMMIT/``, each file under its path in the repository.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from localllm.errors import DataError, NetworkError, SourceNotFoundError, UsageError
from localllm.files import write_atomic
from localllm.models.sources.hub_files import HubFile, Listing, fetch_file, list_repository
from localllm.models.transfer import Report, require_room
from localllm.models.workspace import Workspace
from localllm.paths import DIR_MODE, Home
from localllm.sanitize import one_line

# Where a repository has the same rows in several kinds, the first is taken.
SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".json", ".csv", ".tsv")
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})"
    r"(?:/(?P<config>[A-Za-z0-9_][A-Za-z0-9._-]{0,95}))?"
    r"(?::(?P<split>[A-Za-z0-9_][A-Za-z0-9._-]{0,95}))?"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,199}))?",
    re.ASCII,
)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ =+-]{0,199}", re.ASCII)
_SPLITS = re.compile(r"(?:^|[-_./])(train|validation|valid|val|dev|test)(?:[-_./]|$)")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "config.json", "state.json")
_LISTED = 24


@dataclass(frozen=True)
class HubRows:
    """A data set, and what is wanted of it.

    Attributes:
        repository: ``org/name``.
        config: Its part; empty where it has one alone.
        split: As the repository names it; empty for ``train`` and ``validation``.
        revision: Branch, tag or commit; empty for the main branch.
    """

    repository: str
    config: str = ""
    split: str = ""
    revision: str = ""

    @classmethod
    def parse(cls, text: str) -> "HubRows | None":
        """None where ``text`` is no such name: a path with a known ending, for example, is a file's."""
        text = text.strip().removeprefix("hf:")
        found = _NAME.fullmatch(text)
        if not found or ".." in text or (not found["split"] and text.lower().endswith(SUFFIXES)):
            return None
        return cls(**{name: value or "" for name, value in found.groupdict().items()})

    @property
    def key(self) -> str:
        """Of its lock and its directory under ``partial/``."""
        return Workspace.key(f"hf-dataset-{self.repository}")


@dataclass(frozen=True)
class FetchedRows:
    """A data set that is here.

    Attributes:
        files: Each for ``train`` or ``valid``; a split that was named is for training.
        commit: Of the repository.
        note: What a person should know; empty where there is nothing.
    """

    files: tuple[tuple[Path, str], ...]
    commit: str
    note: str = ""


def find_kept_rows(wanted: HubRows, home: Home, commit: str) -> FetchedRows | None:
    """What was fetched before under that name, at that commit; None where it is not all here."""
    found = _kept_rows(wanted, _directory(wanted, home) / commit)
    return FetchedRows(found, commit) if found else None


def fetch_rows(wanted: HubRows, home: Home, report: Report, *, commit: str = "") -> FetchedRows:
    """Bring the files of a data set into the home; what is there is not fetched again.

    Args:
        wanted: What is meant.
        home: Keeps them.
        report: Told of the progress.
        commit: The one to take, whatever the branch has become; where it is here, nothing is asked of the hub.

    Raises:
        SourceNotFoundError, AccessDeniedError, NetworkError, ChecksumError, DiskFullError: As they are named.
        UsageError: There are several parts or splits, and none was named.
        DataError: The repository holds no file of rows.
    """
    kept = _directory(wanted, home)
    if commit and (known := find_kept_rows(wanted, home, commit)):
        return known
    try:
        listing = list_repository(wanted.repository, commit or wanted.revision, kind="dataset")
    except NetworkError as error:
        if commit or wanted.revision or not kept.is_dir():
            raise
        newest = max(kept.iterdir(), key=lambda path: path.stat().st_mtime, default=kept)
        if not (found := _kept_rows(wanted, newest)):
            raise
        return FetchedRows(found, newest.name, f"{error.message} What was fetched before is used.")
    chosen = choose_rows(wanted, listing)
    target = kept / listing.commit
    files = tuple((target / file.path, part) for file, part in chosen)
    if not all(path.is_file() for path, _ in files):
        _fetch(wanted, listing, [file for file, _ in chosen], target, home, report)
    _note_rows(wanted, target, chosen)
    return FetchedRows(files, listing.commit)


def choose_rows(wanted: HubRows, listing: Listing) -> tuple[tuple[HubFile, str], ...]:
    """The files that are meant, each for ``train`` or ``valid``; test rows only where they are asked for.

    The repository's card says which files belong where; without that, their names do.

    Raises:
        UsageError, SourceNotFoundError, DataError: As for :func:`fetch_rows`.
    """
    files = [file for file in listing.files if _holds_rows(file.path)]
    configs = _by_card(listing.configs, files) or _by_names(files)
    if not configs:
        raise DataError(f"The data set {wanted.repository} holds no file of rows.", f"Files end in {_words(SUFFIXES)}.")
    splits = _choose_config(wanted, configs)
    if wanted.split:
        if wanted.split not in splits:
            raise SourceNotFoundError(
                f"{wanted.repository} has no split {wanted.split!r}.", f"It has {_words(splits)}."
            )
        names = [wanted.split]
    else:
        names = [name for name in splits if name in ("train", "validation", "valid", "val", "dev")]
        if "train" not in names:
            where = f"{wanted.repository}/{wanted.config}" if wanted.config else wanted.repository
            raise UsageError(
                f"{wanted.repository} has no split named train.",
                f"Name one, as in {where}:{next(iter(splits))}. It has {_words(splits)}.",
            )
    chosen: dict[str, tuple[HubFile, str]] = {}
    for name in names:
        part = "train" if wanted.split or name == "train" else "valid"
        for file in _of_one_kind(splits[name]):
            chosen.setdefault(file.path, (file, part))
    return tuple(chosen.values())


Configs = Mapping[str, Mapping[str, list[HubFile]]]


def _choose_config(wanted: HubRows, configs: Configs) -> Mapping[str, list[HubFile]]:
    if wanted.config:
        if wanted.config not in configs:
            raise SourceNotFoundError(
                f"{wanted.repository} has no part {wanted.config!r}.", f"It has {_words(configs)}."
            )
        return configs[wanted.config]
    if len(configs) == 1:
        return next(iter(configs.values()))
    if "default" in configs:
        return configs["default"]
    raise UsageError(
        f"{wanted.repository} has {len(configs)} parts: {_words(configs)}.",
        f"Name one, as in {wanted.repository}/{next(iter(configs))}.",
    )


def _by_card(described: Iterable[Mapping[str, Any]], files: list[HubFile]) -> Configs:
    """What the card says: a list of ``config_name``, and ``data_files`` with a pattern for each split."""
    configs: dict[str, dict[str, list[HubFile]]] = {}
    for config in described:
        given = config.get("data_files")
        if isinstance(given, str | list) and given and not isinstance(given[0], dict):
            given = [{"split": "train", "path": given}]
        splits: dict[str, list[HubFile]] = {}
        for item in given if isinstance(given, list) else ():
            if not isinstance(item, dict) or not isinstance(item.get("split"), str):
                continue
            paths = item.get("path")
            patterns = [paths] if isinstance(paths, str) else [str(path) for path in paths or ()]
            if found := [file for file in files if any(fnmatchcase(file.path, pattern) for pattern in patterns)]:
                splits.setdefault(item["split"], []).extend(found)
        if splits:
            configs[str(config.get("config_name", "default"))] = splits
            if config.get("default") is True:
                configs["default"] = splits
    return configs


def _by_names(files: list[HubFile]) -> Configs:
    """Without a card: a directory that is named after no split is a part, and a file without a split is to learn."""
    configs: dict[str, dict[str, list[HubFile]]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        found = _SPLITS.findall(str(path.with_suffix("")).lower())
        first = path.parts[0] if len(path.parts) > 1 else ""
        config = first if first and first != "data" and not _SPLITS.search(first.lower()) else "default"
        configs.setdefault(config, {}).setdefault(found[-1] if found else "train", []).append(file)
    return configs


def _holds_rows(path: str) -> bool:
    parts = PurePosixPath(path).parts
    safe = all(_PART.fullmatch(part) for part in parts)
    return safe and parts[-1].lower().endswith(SUFFIXES) and parts[-1] not in _ABOUT


def _of_one_kind(files: list[HubFile]) -> list[HubFile]:
    for suffix in SUFFIXES:
        if found := [file for file in files if file.path.lower().endswith(suffix)]:
            return found
    return []


def _fetch(wanted: HubRows, listing: Listing, files: list[HubFile], target: Path, home: Home, report: Report) -> None:
    workspace = Workspace(home.ensure())
    with workspace.exclusive(wanted.key, lambda: None) as work:
        require_room(work, sum(file.size for file in files if not (target / file.path).is_file()))
        for file in files:
            place = target / file.path
            if place.is_file():
                continue
            fetched = fetch_file(wanted.repository, listing.commit, file, work, report, kind="dataset")
            place.parent.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
            (work / fetched.path).replace(place)
        workspace.discard(work)


def _directory(wanted: HubRows, home: Home) -> Path:
    return home.datasets / wanted.repository.replace("/", "--")


def _note_rows(wanted: HubRows, target: Path, chosen: Iterable[tuple[HubFile, str]]) -> None:
    """Write down which files this name means at this commit: a run that goes on asks nobody."""
    lines = "".join(f"{part}\t{file.path}\n" for file, part in chosen)
    write_atomic(target / _list_name(wanted), lines)


def _kept_rows(wanted: HubRows, target: Path) -> tuple[tuple[Path, str], ...]:
    """The files noted before; none where one of them is gone."""
    noted = target / _list_name(wanted)
    if not noted.is_file():
        return ()
    lines = [line.split("\t") for line in noted.read_text(encoding="utf-8").splitlines()]
    found = tuple((target / path, part) for part, path in lines)
    return found if all(path.is_file() for path, _ in found) else ()


def _list_name(wanted: HubRows) -> str:
    return f".{wanted.config or 'all'}--{wanted.split or 'all'}.list"


def _words(names: Iterable[str]) -> str:
    shown = [one_line(name, 60) for name in names]
    more = f", and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(shown[:_LISTED]) + more
