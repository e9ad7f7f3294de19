"""What is known about a model in the store, kept as ``manifest.json`` beside its files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.models.names import ModelName

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class ModelFile:
    """One file of a model.

    Attributes:
        path: Relative to the model's directory; absolute when the file is kept elsewhere (an Ollama store).
        size: Bytes.
        sha256: Lower-case hex.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Parent:
    """What a model was made from, and how (``quantize``, ``fuse``, ``prune`` with their options)."""

    name: str
    sha256: str
    how: str


@dataclass(frozen=True)
class Manifest:
    """What is known about a model.

    Attributes:
        name: First part of its name in the store.
        variant: Second part (``q4_1``, ``f16``, ``mlx-4bit``).
        source: Where it came from, as it can be given to ``pull`` again.
        revision: Commit, package version or tag at the source; empty when the source has none.
        format: ``gguf``, ``mlx`` or ``hf``.
        files: The first one is what is loaded (for GGUF), or the directory's index.
        architecture: ``llama``, ``gemma3``, …
        parameters: Number of weights.
        quantization: ``Q4_1``, ``F16``, …
        n_ctx_train: Context length in training, in tokens; 0 when unknown.
        licence: As the source says; empty when it does not.
        created: ISO 8601, UTC.
        parent: What it was made from; None for an original.
        extra: Anything a later version wrote that this one does not know.
    """

    name: str
    variant: str
    source: str
    format: str
    files: tuple[ModelFile, ...]
    revision: str = ""
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    n_ctx_train: int = 0
    licence: str = ""
    created: str = ""
    parent: Parent | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> ModelName:
        """The full name."""
        return ModelName(self.name, self.variant)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def made_by(manifest: Manifest) -> str:
    """The command that gets or makes the model again."""
    return f"localllm {manifest.parent.how if manifest.parent else f'pull {manifest.source}'}"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``directory``, atomically."""
    record = {"version": VERSION, **asdict(manifest)}
    record.update(record.pop("extra"))
    write_atomic(directory / MANIFEST, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` from ``directory``.

    Raises:
        InvalidModelError: It is missing or damaged.
    """
    path = directory / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record.pop("version", None)
        record["files"] = tuple(ModelFile(**file) for file in record["files"])
        record["parent"] = Parent(**record["parent"]) if record.get("parent") else None
        known = {
            key: record.pop(key) for key in list(record) if key in Manifest.__dataclass_fields__ and key != "extra"
        }
        return Manifest(**known, extra=record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(
            f"The manifest {path} cannot be read.", "Remove the model with `localllm models rm` and pull it again."
        ) from error
