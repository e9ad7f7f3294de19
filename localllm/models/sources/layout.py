"""Which files of a directory or repository of safetensors belong to the model."""

import re
from collections.abc import Iterable

from localllm.errors import InvalidModelError

# Weights, configuration and tokenizer; never Python code, pickles or pictures.
_WANTED = re.compile(r".*\.(?:safetensors|json|jinja|model|tiktoken)|(?:merges|vocab)\.txt|LICEN[CS]E.*", re.IGNORECASE)
_CONFIG = "config.json"


def order_directory_files(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The model's files among ``names``, ``config.json`` first.

    Files in sub-directories and hidden files are left out; so are Mistral's ``consolidated`` weights where the usual
    ones are there too.

    Raises:
        InvalidModelError: There is no ``config.json``, or no weights.
    """
    wanted = sorted(
        name
        for name in names
        if "/" not in name and not name.startswith(".") and _WANTED.fullmatch(name) and name != "manifest.json"
    )
    weights = [name for name in wanted if name.endswith(".safetensors")]
    if _CONFIG not in wanted or not weights:
        raise InvalidModelError(
            f"{where} holds no model that localllm knows.",
            "A model is a .gguf file, or config.json with *.safetensors.",
        )
    if any(not name.startswith("consolidated") for name in weights):
        wanted = [name for name in wanted if not (name.startswith("consolidated") and name.endswith(".safetensors"))]
    return (_CONFIG, *(name for name in wanted if name != _CONFIG))
