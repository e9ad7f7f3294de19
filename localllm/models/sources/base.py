"""What every source of models is to :func:`localllm.models.pull.pull`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localllm.models.manifest import ModelFile
from localllm.models.names import ModelName
from localllm.models.transfer import Report


@dataclass(frozen=True)
class Fetched:
    """What a source brought.

    Attributes:
        files: Relative to the working directory, or absolute (a model kept elsewhere); the first is what is loaded.
        source: Where it came from, with the version that was found.
        name: What to call it; the variant is empty when only the content can say it.
        revision: Commit, package version or tag; empty when there is none.
        licence: As the source says.
    """

    files: tuple[ModelFile, ...]
    source: str
    name: ModelName
    revision: str = ""
    licence: str = ""


class Offer(Protocol):
    """A source that has been looked at, before anything large is moved."""

    @property
    def name(self) -> ModelName | None:
        """What the model will be called; None when only its content can say that."""

    @property
    def sha256(self) -> str:
        """Of the file that is loaded; empty when the source does not say."""

    @property
    def size(self) -> int | None:
        """Bytes that will be written; None when unknown."""

    def fetch(self, work: Path, report: Report) -> Fetched:
        """Put the model's files, whole and with the checksums the source promised, into ``work``."""


class Source(Protocol):
    """A parsed source."""

    @property
    def text(self) -> str:
        """The source in its full form, as it can be given to ``pull`` again."""

    def matches(self, stored: str) -> bool:
        """Whether a model whose manifest names the source ``stored`` is what this source asks for."""

    def offer(self) -> Offer:
        """Look at the source: what it has, which file is meant.

        Raises:
            SourceNotFoundError, AccessDeniedError, NetworkError, InvalidModelError: As they are named.
        """
