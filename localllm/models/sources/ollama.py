"""A model already in a local Ollama store, used where it is: nothing is copied, nothing of Ollama's is changed.

Ollama names a blob by its own SHA-256 and checks that when it pulls; here the size and the GGUF header are checked,
and the digest is taken over.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError, SourceNotFoundError, StoreError, UsageError
from localllm.models.derive import store_name
from localllm.models.manifest import ModelFile
from localllm.models.names import ModelName
from localllm.models.sources.base import Fetched
from localllm.models.transfer import Report
from localllm.sanitize import one_line

_MODEL = "application/vnd.ollama.image.model"
_LICENCE = "application/vnd.ollama.image.license"
_REGISTRY = "registry.ollama.ai"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_MANIFEST_MAX = 4 << 20  # bytes
_LICENCE_MAX = 4096


def ollama_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where Ollama keeps its models: ``OLLAMA_MODELS``, else ``~/.ollama/models``."""
    chosen = (os.environ if environ is None else environ).get("OLLAMA_MODELS")
    return Path(chosen).expanduser() if chosen else Path.home() / ".ollama" / "models"


@dataclass(frozen=True)
class OllamaSource:
    """A name in the Ollama store.

    Attributes:
        root: The store (see :func:`ollama_directory`).
        namespace: ``library`` for Ollama's own models.
        model: ``llama3.2``.
        tag: ``1b``; ``latest`` when none is given.
    """

    root: Path
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str, root: Path) -> "OllamaSource":
        """Parse ``[NAMESPACE/]NAME[:TAG]``.

        Raises:
            UsageError: It is none.
        """
        path, _, tag = text.partition(":")
        namespace, _, model = path.rpartition("/")
        parsed = cls(root, namespace or "library", model, tag or "latest")
        parts = (parsed.namespace, parsed.model, parsed.tag)
        if not all(_PART.fullmatch(part) and ".." not in part for part in parts) or text.endswith(":"):
            raise UsageError(f"{text!r} is no name of an Ollama model.", "Names look like ollama:llama3.2:1b.")
        return parsed

    @property
    def text(self) -> str:
        """``ollama:NAME:TAG``."""
        namespace = "" if self.namespace == "library" else f"{self.namespace}/"
        return f"ollama:{namespace}{self.model}:{self.tag}"

    def matches(self, stored: str) -> bool:
        """Whether ``stored`` is the same name and tag."""
        return stored == self.text

    def offer(self) -> "OllamaOffer":
        """Read Ollama's manifest.

        Raises:
            SourceNotFoundError: The store has no such model.
            InvalidModelError: The manifest is damaged, or points outside the store.
        """
        path = self.root / "manifests" / _REGISTRY / self.namespace / self.model / self.tag
        try:
            with _inside(self.root, path).open("rb") as handle:
                record = json.loads(handle.read(_MANIFEST_MAX))
            layers: list[dict[str, Any]] = [layer for layer in record["layers"] if isinstance(layer, dict)]
        except FileNotFoundError as error:
            raise SourceNotFoundError(
                f"Ollama has no model {self.model}:{self.tag} in {self.root}.", _known(self.root)
            ) from error
        except PermissionError as error:
            raise StoreError(
                f"{path} cannot be read: permission denied.", "The store belongs to another user."
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidModelError(
                f"Ollama's manifest {path} is damaged.", "Pull the model again in Ollama."
            ) from error
        models = [layer for layer in layers if layer.get("mediaType") == _MODEL]
        if len(models) != 1:
            raise InvalidModelError(
                f"{self.text} has {len(models)} model files; one is needed.",
                "Split models and adapters cannot be shared.",
            )
        blob, sha256 = self._blob(models[0])
        licences = [layer for layer in layers if layer.get("mediaType") == _LICENCE]
        licence = _first_line(self._blob(licences[0])[0]) if licences else ""
        size = blob.stat().st_size
        if size != models[0].get("size"):
            raise InvalidModelError(
                f"{blob.name} has not the size that Ollama's manifest says.", "Pull it again in Ollama."
            )
        return OllamaOffer(self, ModelFile(str(blob), size, sha256), licence)

    def _blob(self, layer: dict[str, Any]) -> tuple[Path, str]:
        match = _DIGEST.fullmatch(str(layer.get("digest")))
        if not match:
            raise InvalidModelError(
                f"Ollama's manifest of {self.text} holds a malformed digest.", "Pull it again in Ollama."
            )
        try:
            return _inside(self.root, self.root / "blobs" / f"sha256-{match[1]}"), match[1]
        except FileNotFoundError as error:
            raise SourceNotFoundError(
                f"Ollama's store lacks the file of {self.text}.", f"Run `ollama pull {self.model}:{self.tag}`."
            ) from error


@dataclass(frozen=True)
class OllamaOffer:
    """A blob of the Ollama store."""

    source: OllamaSource
    blob: ModelFile
    licence: str

    @property
    def name(self) -> ModelName | None:
        """The model's name and tag."""
        return store_name(self.source.model, self.source.tag)

    @property
    def sha256(self) -> str:
        """From the blob's name."""
        return self.blob.sha256

    @property
    def size(self) -> int | None:
        """Nothing is written."""
        return 0

    def fetch(self, work: Path, report: Report) -> Fetched:  # noqa: ARG002 - as in every source
        """Refer to the blob; ``work`` stays empty."""
        name = store_name(self.source.model, self.source.tag)
        return Fetched((self.blob,), self.source.text, name, revision=self.source.tag, licence=self.licence)


def _inside(root: Path, path: Path) -> Path:
    """``path`` without symbolic links; it must lie inside ``root``.

    Raises:
        FileNotFoundError: There is nothing there.
        InvalidModelError: It lies elsewhere.
    """
    real = path.resolve(strict=True)
    if not real.is_relative_to(root.resolve()):
        raise InvalidModelError(f"{path} points outside the Ollama store.", "Pull the model again in Ollama.")
    return real


def _first_line(path: Path) -> str:
    with path.open("rb") as handle:
        text = handle.read(_LICENCE_MAX).decode("utf-8", "replace")
    return one_line(next((line for line in text.splitlines() if line.strip()), ""), 80)


def _known(root: Path) -> str:
    library = root / "manifests" / _REGISTRY / "library"
    names = sorted(f"{path.parent.name}:{path.name}" for path in library.glob("*/*"))
    return (
        f"It has: {', '.join(names[:8])}."
        if names
        else "Is Ollama installed here? OLLAMA_MODELS says where it keeps models."
    )
