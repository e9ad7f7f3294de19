"""The Hugging Face hub: ``[hf:]ORG/REPO[:FILE or :QUANTIZATION][@REVISION]``.

All traffic goes through ``huggingface_hub``, so its cache, tokens, offline switch and endpoint hold. Its own
``hf_hub_download`` begins a file anew in every process, and after a broken connection loses up to 10 MB; a pull here
goes on at the last byte, so the file is streamed through the package's session into a partial file of ours.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import InvalidModelError, UsageError
from localllm.models.derive import is_safe_file_name, plain_stem, quantization_tag, store_name
from localllm.models.names import ModelName
from localllm.models.sources.base import Fetched
from localllm.models.sources.hub_choice import choose_files
from localllm.models.sources.hub_files import HubFile, Listing, fetch_file, list_repository
from localllm.models.transfer import Report

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", re.ASCII)
_SELECTOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+/=()-]{0,299}", re.ASCII)


@dataclass(frozen=True)
class HubSource:
    """A repository, and what is wanted of it.

    Attributes:
        repository: ``org/repo``.
        selector: A file's path, a quantization (``q4_k_m``), or empty.
        revision: Branch, tag or commit; empty for the main branch.
    """

    repository: str
    selector: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> "HubSource":
        """Parse ``ORG/REPO[:SELECTOR][@REVISION]``.

        Raises:
            UsageError: It is none.
        """
        rest, at, revision = text.partition("@")
        repository, colon, selector = rest.partition(":")
        valid = (
            _REPOSITORY.fullmatch(repository)
            and (not at or _REVISION.fullmatch(revision))
            and (not colon or _SELECTOR.fullmatch(selector))
            and ".." not in text
        )
        if not valid:
            raise UsageError(
                f"{text!r} is no repository on the hub.",
                "As in org/repo, org/repo:q4_k_m or org/repo:file.gguf@revision.",
            )
        return cls(repository, selector, revision)

    @property
    def text(self) -> str:
        """``hf:ORG/REPO[:SELECTOR][@REVISION]``."""
        selector = f":{self.selector}" if self.selector else ""
        return f"hf:{self.repository}{selector}" + (f"@{self.revision}" if self.revision else "")

    def matches(self, stored: str) -> bool:
        """Whether ``stored`` asks for the same of the same repository. A newer commit there is not looked for."""
        return stored.lower() == self.text.lower()

    def offer(self) -> "HubOffer":
        """List the repository (or, offline, what the cache has of it) and choose the files.

        Raises:
            SourceNotFoundError, AccessDeniedError, NetworkError, UsageError, InvalidModelError: As they are named.
        """
        listing = list_repository(self.repository, self.revision)
        by_path = {file.path: file for file in listing.files}
        chosen = tuple(by_path[path] for path in choose_files(self.repository, by_path, self.selector))
        names = [file.name for file in chosen]
        for name in names:
            if not is_safe_file_name(name):
                raise InvalidModelError(f"{self.repository} holds a file with an unsafe name: {name!r}.")
        if len(set(names)) != len(names):
            raise InvalidModelError(f"{self.repository} holds two files called {max(names, key=names.count)}.")
        return HubOffer(self, listing, chosen)


@dataclass(frozen=True)
class HubOffer:
    """The chosen files of a repository, the one to load first."""

    source: HubSource
    listing: Listing
    chosen: tuple[HubFile, ...]

    @property
    def _suggested(self) -> ModelName:
        repository = self.source.repository.rpartition("/")[2]
        first = self.chosen[0].name
        if not first.lower().endswith(".gguf"):
            return store_name(repository)
        # A repository of many models (or one with a meaningless name) is better described by the file's own name.
        plain = plain_stem(first)
        name = store_name(repository).name
        return store_name(repository if store_name(plain).name in name else plain, quantization_tag(first))

    @property
    def name(self) -> ModelName | None:
        """From the repository and the file; None when only the content says the quantization."""
        return self._suggested if self._suggested.variant else None

    @property
    def sha256(self) -> str:
        """Of the first file, when the hub says it."""
        return self.chosen[0].sha256

    @property
    def size(self) -> int | None:
        """Bytes of all files that are not in the hub's cache yet."""
        return sum(file.size for file in self.chosen if file.cached is None)

    def fetch(self, work: Path, report: Report) -> Fetched:
        """Fetch every file, going on with partial ones; each is checked against what the hub promised.

        Raises:
            NetworkError: The connection broke; what has arrived stays for the next try.
            ChecksumError, DiskFullError, AccessDeniedError, SourceNotFoundError: As they are named.
        """
        files = tuple(
            fetch_file(self.source.repository, self.listing.commit, file, work, report) for file in self.chosen
        )
        return Fetched(files, self.source.text, self._suggested, self.listing.commit, self.listing.licence)
