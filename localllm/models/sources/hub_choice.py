"""Which files of a hub repository are meant."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from localllm.errors import SourceNotFoundError, UsageError
from localllm.models.derive import group_split_files, quantization_tag
from localllm.models.sources.layout import order_directory_files
from localllm.sanitize import one_line

# A good balance of size and quality at every model size; what most tools take when nothing is said.
_PREFERRED = "Q4_K_M"
# GGUF files that are no model by themselves: projectors of multimodal models, importance matrices.
_COMPANIONS = ("mmproj", "imatrix")
_LISTED = 24


def choose_files(repository: str, paths: Iterable[str], selector: str) -> tuple[str, ...]:
    """Choose the files of one model, the one to load (or ``config.json``) first.

    Without a selector: the only GGUF model, else the one in Q4_K_M, else the safetensors.

    Args:
        repository: For messages.
        paths: Every file of the repository.
        selector: A path, a file's name or a quantization, in any case; or empty.

    Raises:
        SourceNotFoundError: Nothing of that name is there.
        UsageError: There are several, and the selector does not decide.
        InvalidModelError: There is no model at all, or a part of a split one is missing.
    """
    every = list(paths)
    models = group_split_files(
        path
        for path in every
        if path.lower().endswith(".gguf") and not any(word in PurePosixPath(path).name.lower() for word in _COMPANIONS)
    )
    if selector:
        found = [first for first in models if _is_selected(first, models[first], selector)]
        if not found:
            raise SourceNotFoundError(f"{repository} has no {selector!r}.", _listing(models))
    elif not models:
        return order_directory_files(every, repository)
    else:
        found = (
            list(models)
            if len(models) == 1
            else [first for first in models if quantization_tag(first).upper() == _PREFERRED]
        )
    if len(found) != 1:
        which = f"{len(found)} models match" if found else "none of them is the usual Q4_K_M"
        raise UsageError(
            f"{repository} has {len(models)} GGUF models, and {which}.",
            f"Add :q8_0 or :FILE to choose. {_listing({first: models[first] for first in found} or models)}",
        )
    return models[found[0]]


def _is_selected(first: str, files: tuple[str, ...], selector: str) -> bool:
    wanted = selector.lower()
    names = {name.lower() for path in files for name in (path, PurePosixPath(path).name)}
    return wanted in names or quantization_tag(first).lower() == wanted


def _listing(models: dict[str, tuple[str, ...]]) -> str:
    if not models:
        return "It has no GGUF files."
    names = [one_line(first, 100) for first in models]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"It has: {', '.join(names[:_LISTED])}{more}."
