"""What file and repository names say about a model: its name, its quantization, the parts of a split file."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from localllm.errors import InvalidModelError
from localllm.models.names import ModelName

# Q4_K_M, IQ2_XXS, TQ1_0, BF16, MXFP4_MOE …, at the end of a file's stem, after a separator.
_QUANTIZATION = re.compile(
    r"(?:^|[-._])(?P<tag>(?:UD-)?(?:(?:I?Q|TQ)[1-8](?:_[0-9KXSML]+)*|MXFP4(?:_MOE)?|NVFP4|B?F16|F32))$", re.IGNORECASE
)
_SPLIT = re.compile(r"-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_PACKAGING = re.compile(r"[-_.](?:i1[-_.])?(?:gguf|mlx)$", re.IGNORECASE)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@=()-]{0,199}", re.ASCII)
_NAME_MAX = 96


def is_safe_file_name(name: str) -> bool:
    """Whether ``name`` can be the name of a file in a model's directory: no separator, no leading dot, nothing odd."""
    return bool(_FILE_NAME.fullmatch(name)) and name != "manifest.json"


def quantization_tag(file: str) -> str:
    """The quantization that a GGUF file's name ends with, as written (``Q4_K_M``); empty when it names none."""
    match = _QUANTIZATION.search(_stem(file))
    return match["tag"] if match else ""


def plain_stem(file: str) -> str:
    """A GGUF file's name without folder, part number, extension and quantization."""
    return _QUANTIZATION.sub("", _stem(file))


def group_split_files(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group GGUF files into models: a split file's parts in their order, any other file alone.

    Returns:
        The first (or only) file of each model, and all its files; sorted.

    Raises:
        InvalidModelError: A part is missing.
    """
    groups: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for file in sorted(files):
        match = _SPLIT.search(file)
        key = file[: match.start()] + f"-of-{match['count']}" if match else file
        groups.setdefault(key, {})[int(match["part"]) if match else 1] = file
        counts[key] = int(match["count"]) if match else 1
    result = {}
    for key, parts in groups.items():
        missing = [part for part in range(1, counts[key] + 1) if part not in parts]
        if missing:
            raise InvalidModelError(
                f"{PurePosixPath(next(iter(parts.values()))).name} is one of {counts[key]} parts, "
                f"and part {missing[0]} is missing.",
                "All parts must be in the same place.",
            )
        ordered = tuple(parts[part] for part in sorted(parts))
        result[ordered[0]] = ordered
    return result


def split_siblings(file: str, files: Iterable[str]) -> list[str]:
    """Those of ``files`` that are parts of the same split model as ``file``; ``[file]`` when it is not split."""
    match = _SPLIT.search(file)
    if not match:
        return [file]
    prefix, count = file[: match.start()], match["count"]
    return [
        other
        for other in files
        if (found := _SPLIT.search(other)) and found["count"] == count and other[: found.start()] == prefix
    ]


def store_name(text: str, variant: str = "") -> ModelName:
    """A valid model name made from any text: ``SmolLM2-135M-Instruct-GGUF`` becomes ``smollm2-135m-instruct``."""
    return ModelName(_slug(_PACKAGING.sub("", text)) or "model", _slug(variant))


def _stem(file: str) -> str:
    name = PurePosixPath(file).name
    return _SPLIT.sub("", name) if _SPLIT.search(name) else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)


def _slug(text: str) -> str:
    safe = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    return re.sub(r"\.{2,}", ".", safe).strip("._-")[:_NAME_MAX].strip("._-")
