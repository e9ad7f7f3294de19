"""How an embedder makes one vector of many: sentence-transformers' files on one side, a number in GGUF on the other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from quant.tensors.metadata import MetadataValue

_MEAN, _CLS, _LAST = 1, 2, 3  # llama_pooling_type
_MODES = {"pooling_mode_mean_tokens": _MEAN, "pooling_mode_cls_token": _CLS, "pooling_mode_lasttoken": _LAST}
_NAMES = {"mean": _MEAN, "cls": _CLS, "lasttoken": _LAST}
_KEY = "pooling_type"
_FOLDER = "1_Pooling"
_PREFIX = "sentence_transformers.models."


def pooling_metadata(directory: Path, architecture: str, pooling: str = "") -> dict[str, MetadataValue]:
    """The metadata of a sentence-transformers directory; none for another model.

    Args:
        directory: With modules.json, and the folder of settings that it names.
        architecture: GGUF's name.
        pooling: ``mean``, ``cls`` or ``lasttoken``, where it is known without the directory.

    Raises:
        InvalidModelError: The directory's files are damaged, or say something that llama.cpp does not compute.
    """
    if pooling:
        return {f"{architecture}.{_KEY}": _NAMES[pooling]}
    modules = directory / "modules.json"
    if not modules.is_file():
        return {}
    try:
        folders = [str(module["path"]) for module in json.loads(modules.read_bytes()) if "Pooling" in module["type"]]
        if not folders:
            return {}
        settings = json.loads((directory / Path(folders[0]).name / "config.json").read_bytes())
        return {f"{architecture}.{_KEY}": _pooling_type(settings)}
    except FileNotFoundError as error:
        raise InvalidModelError(
            "The embedder's pooling is not known: modules.json names it, and its config.json is missing.",
            "Pull the model again.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError("The embedder's modules.json is damaged.", "Pull the model again.") from error


def write_pooling(metadata: Mapping[str, MetadataValue], directory: Path, architecture: str) -> None:
    """Write sentence-transformers' files, for a model whose GGUF metadata names a pooling."""
    own = metadata.get(f"{architecture}.{_KEY}")
    width = metadata.get(f"{architecture}.embedding_length")
    modes = {key: own == kind for key, kind in _MODES.items()}
    if not any(modes.values()):
        return
    kinds = (("0", "", "Transformer"), ("1", _FOLDER, "Pooling"), ("2", "2_Normalize", "Normalize"))
    modules = [
        {"idx": int(number), "name": number, "path": path, "type": _PREFIX + kind} for number, path, kind in kinds
    ]
    write_atomic(directory / "modules.json", json.dumps(modules, indent=2) + "\n")
    (directory / _FOLDER).mkdir()
    (directory / "2_Normalize").mkdir()
    settings = {"word_embedding_dimension": width, **modes}
    write_atomic(directory / _FOLDER / "config.json", json.dumps(settings, indent=2) + "\n")


def _pooling_type(pooling: Mapping[str, Any]) -> int:
    for key, kind in _MODES.items():
        if pooling.get(key):
            return kind
    name = pooling.get("pooling_mode")
    if name not in _NAMES:
        raise InvalidModelError("The embedder pools in a way that llama.cpp does not compute.")
    return _NAMES[name]
