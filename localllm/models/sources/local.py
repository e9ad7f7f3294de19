"""A GGUF file or a model directory on this computer: hard links on the same disk, else copies."""

import os
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import InvalidModelError, SourceNotFoundError, StoreError
from localllm.models.derive import (
    group_split_files,
    is_safe_file_name,
    plain_stem,
    quantization_tag,
    split_siblings,
    store_name,
)
from localllm.models.names import ModelName
from localllm.models.sources.base import Fetched
from localllm.models.sources.layout import order_directory_files
from localllm.models.transfer import Report, import_files


@dataclass(frozen=True)
class LocalSource:
    """A file or directory.

    Attributes:
        path: Absolute.
    """

    path: Path

    @property
    def text(self) -> str:
        """The absolute path."""
        return str(self.path)

    def matches(self, stored: str) -> bool:  # noqa: ARG002 - as in every source
        """Never: the file may have changed since, so it is always read, and compared by its checksum."""
        return False

    def offer(self) -> "LocalOffer":
        """Find the model's files.

        Raises:
            SourceNotFoundError: There is nothing at the path.
            InvalidModelError: What is there is no model.
            StoreError: The path cannot be read.
        """
        try:
            if self.path.is_dir():
                return self._directory()
            if not self.path.is_file():
                raise SourceNotFoundError(f"There is no file or directory {self.path}.", "Check the path.")
            if self.path.suffix.lower() != ".gguf":
                raise InvalidModelError(
                    f"{self.path.name} is not a GGUF file.",
                    "Give a .gguf file, or a directory with config.json and *.safetensors.",
                )
            siblings = [entry.name for entry in self.path.parent.iterdir() if entry.is_file()]
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}.") from error
        names = next(iter(group_split_files(split_siblings(self.path.name, siblings)).values()))
        return self._gguf(tuple(self.path.parent / name for name in names))

    def _gguf(self, paths: tuple[Path, ...]) -> "LocalOffer":
        first = paths[0].name
        return LocalOffer(self, paths, store_name(plain_stem(first), quantization_tag(first)))

    def _directory(self) -> "LocalOffer":
        names = [entry.name for entry in self.path.iterdir() if entry.is_file()]
        models = group_split_files(name for name in names if name.lower().endswith(".gguf"))
        if len(models) > 1:
            raise InvalidModelError(
                f"{self.path} holds several models: {', '.join(models)}.", "Give the path of the one you mean."
            )
        if models:
            return self._gguf(tuple(self.path / name for name in next(iter(models.values()))))
        files = order_directory_files(names, str(self.path))
        return LocalOffer(self, tuple(self.path / name for name in files), store_name(self.path.name))


@dataclass(frozen=True)
class LocalOffer:
    """The files of a local model, the one to load first."""

    source: LocalSource
    paths: tuple[Path, ...]
    suggested: ModelName

    @property
    def name(self) -> ModelName | None:
        """From the file's name, when that names the quantization too."""
        return self.suggested if self.suggested.variant else None

    @property
    def sha256(self) -> str:
        """Unknown until the file is read."""
        return ""

    @property
    def size(self) -> int | None:
        """Unknown: hard links take no room, and copies are checked one by one."""
        return None

    def fetch(self, work: Path, report: Report) -> Fetched:
        """Link or copy the files into ``work``.

        Raises:
            StoreError: A file cannot be read, or has a name that the store cannot take.
            DiskFullError: There is no room for a copy.
        """
        for path in self.paths:
            if not is_safe_file_name(path.name):
                raise StoreError(f"The store cannot take a file called {path.name!r}.", "Rename it.")
        return Fetched(import_files(self.paths, work, report), self.source.text, self.suggested)


def looks_like_path(text: str) -> bool:
    """Whether a source is meant as a path: written as one, or something of that name is here."""
    if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.isabs(text):  # noqa: PTH117 - Windows drives too
        return True
    return os.path.exists(text)  # noqa: PTH110 - Path.exists raises on a name that is too long
