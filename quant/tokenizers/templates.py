"""Chat templates between the files of a Hugging Face directory and GGUF metadata, byte for byte."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.sanitize import one_line
from quant.tokenizers.source import SourceTokenizer, read_json
from quant.tokenizers.token_types import TokenizerMetadata

_KEY = "tokenizer.chat_template"
_NAMES_KEY = "tokenizer.chat_templates"
_DEFAULT = "default"
_FILE = "chat_template.jinja"
_MORE = "additional_chat_templates"


def gguf_templates(source: SourceTokenizer) -> TokenizerMetadata:
    """The chat templates of a directory as GGUF keys: ``tokenizer.chat_template`` and one more a named template.

    A file of its own overrides tokenizer_config.json, as in transformers.

    Raises:
        InvalidModelError: A template is not a string, or not UTF-8.
    """
    templates = _from_files(source.directory) or _named(source.config.get("chat_template"))
    if not templates:
        templates = _named(read_json(source.directory / "chat_template.json").get("chat_template"))
    names = sorted(name for name in templates if name != _DEFAULT)
    content: TokenizerMetadata = {f"{_KEY}.{name}": templates[name] for name in names}
    if names:
        content[_NAMES_KEY] = names
    if _DEFAULT in templates:
        content[_KEY] = templates[_DEFAULT]
    return content


def write_templates(metadata: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    r"""Write the chat templates of a GGUF file as transformers reads them.

    Returns:
        What tokenizer_config.json must hold, where files would not do: transformers turns their ``\r\n`` into ``\n``.
    """
    templates = {_DEFAULT: metadata[_KEY]} if isinstance(metadata.get(_KEY), str) else {}
    for key, template in metadata.items():
        name = key.removeprefix(_KEY + ".")
        # A name comes from the file: it may not lead elsewhere.
        if name != key and name.replace("_", "").replace("-", "").isalnum() and isinstance(template, str):
            templates[name] = template
    if any("\r" in template for template in templates.values()):
        if set(templates) == {_DEFAULT}:
            return {"chat_template": templates[_DEFAULT]}
        return {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}
    for name, template in templates.items():
        path = directory / _FILE if name == _DEFAULT else directory / _MORE / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, template)
    return {}


def _from_files(directory: Path) -> dict[str, str]:
    paths = {_DEFAULT: directory / _FILE} if (directory / _FILE).is_file() else {}
    paths |= {path.stem: path for path in sorted((directory / _MORE).glob("*.jinja"))}
    try:
        return {name: path.read_bytes().decode() for name, path in paths.items()}  # bytes: line ends stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelError(f"A chat template cannot be read: {error}.") from error


def _named(template: Any) -> dict[str, str]:
    """Templates by name, from the one string or the list of names and templates that transformers writes."""
    if isinstance(template, str):
        return {_DEFAULT: template}
    named: dict[str, str] = {}
    for row in template or ():
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not isinstance(row["template"], str):
            raise InvalidModelError(f"The chat template is of an unknown form: {one_line(str(row), 80)}.")
        named[row["name"]] = row["template"]
    return named
