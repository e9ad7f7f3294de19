"""Putting a model into the store that was made here from another one: quantized, exported, fused."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.models.derive import group_split_files
from localllm.models.describe import describe
from localllm.models.manifest import Manifest, ModelFile, Parent, write_manifest
from localllm.models.names import ModelName
from localllm.models.sources.layout import order_directory_files
from localllm.models.store import ModelStore
from localllm.models.transfer import sha256_of
from localllm.paths import FILE_MODE

RECIPE = "recipe"


@dataclass(frozen=True)
class Making:
    """What is made from what, and how.

    Attributes:
        name: Of the result, in full.
        parent: What it is made from.
        how: The command without ``localllm``, as ``models export a:q4_1 --to hf``: it makes the model again.
        recipe: Every resolved choice; JSON.
    """

    name: ModelName
    parent: Manifest
    how: str
    recipe: dict[str, Any]


def require_free(store: ModelStore, making: Making) -> Manifest | None:
    """Before the work: the model that is here already and was made in the same way; None when the name is free.

    Raises:
        StoreError: Another model has the name.
    """
    existing = store.get(making.name)
    if existing is None or not store.is_whole(existing):
        return None
    if existing.parent == _parent(making) and existing.extra.get(RECIPE) == making.recipe:
        return existing
    return store.same_or_taken(existing, [""])


def register(
    store: ModelStore, work: Path, making: Making, on_bytes: Callable[[int, int], None] = lambda *_: None
) -> Manifest:
    """Check a finished directory of model files (on the store's disk) and make it appear as a model, in one step.

    Args:
        store: Where it goes.
        work: Holds nothing but the model; it becomes the model's directory.
        making: What it is.
        on_bytes: Told the bytes that were checked so far, and those of all files.

    Raises:
        InvalidModelError: What is in ``work`` is no model.
        StoreError: Another model has the name.
        DiskFullError: There is no room for the manifest.
    """
    names = [path.name for path in work.iterdir() if path.is_file()]
    ordered = _ordered(names)
    described = describe([work / name for name in ordered])
    sizes = [(work / name).stat().st_size for name in ordered]
    files: list[ModelFile] = []
    for name, size in zip(ordered, sizes, strict=True):
        before = sum(file.size for file in files)
        sha256 = sha256_of(work / name, lambda done, before=before: on_bytes(before + done, sum(sizes)))  # type: ignore[misc]  # mypy does not infer a lambda's defaults
        (work / name).chmod(FILE_MODE)
        files.append(ModelFile(name, size, sha256))
    manifest = Manifest(
        name=making.name.name,
        variant=making.name.variant,
        source=str(making.parent.model_name),
        format=described.format,
        files=tuple(files),
        architecture=described.architecture,
        parameters=described.parameters,
        quantization=described.quantization,
        n_ctx_train=described.n_ctx_train,
        licence=making.parent.licence or described.licence,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=_parent(making),
        extra={RECIPE: making.recipe},
    )
    write_manifest(work, manifest)
    return store.install(work, manifest)


def named(parent: Manifest, variant: str, wanted: ModelName | None) -> ModelName:
    """What to call the result: the parent's name with another variant, unless a person says otherwise."""
    if wanted is None:
        return ModelName(parent.name, variant)
    return wanted if wanted.variant else replace(wanted, variant=variant)


def _parent(making: Making) -> Parent:
    return Parent(str(making.parent.model_name), making.parent.files[0].sha256, making.how)


def _ordered(names: list[str]) -> tuple[str, ...]:
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not ggufs:
        return order_directory_files(names, "The result")
    groups = group_split_files(ggufs)
    if len(groups) > 1:
        raise InvalidModelError("The result holds several models.")
    return next(iter(groups.values()))
