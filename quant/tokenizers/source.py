"""What a Hugging Face or MLX directory says about its tokenizer, gathered from the several files it is spread over."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text before the model splits it.

    Attributes:
        content: Its text, as written in the prompt.
        special: Not shown in answers.
    """

    content: str
    special: bool


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer's files.

    Attributes:
        directory: Where they are.
        definition: tokenizer.json; empty when there is none.
        config: tokenizer_config.json; empty when there is none.
        model_config: config.json, for the size of the vocabulary; empty when there is none.
        generation: generation_config.json; empty when there is none.
        added: Added tokens by id.
        special: Text of each special token by role (:data:`ROLES`); roles that are not used are absent.
    """

    directory: Path
    definition: Mapping[str, Any] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    model_config: Mapping[str, Any] = field(repr=False)
    generation: Mapping[str, Any] = field(repr=False)
    added: Mapping[int, AddedToken] = field(repr=False)
    special: Mapping[str, str]

    @property
    def n_vocab(self) -> int | None:
        """Rows of the embedding, as config.json has them."""
        for config in (self.model_config.get("text_config") or {}, self.model_config):
            if isinstance(config.get("vocab_size"), int):
                return int(config["vocab_size"])
        return None

    @property
    def model_type(self) -> str:
        """``BPE``, ``WordPiece``, ``Unigram``, …; empty without a tokenizer.json."""
        model = self.definition.get("model") or {}
        return str(model.get("type") or ("BPE" if "merges" in model else ""))

    @classmethod
    def read(cls, directory: Path) -> "SourceTokenizer":
        """Read the files of ``directory`` that are there.

        Raises:
            InvalidModelError: A file is not JSON, or not of the form that its name promises.
        """
        definition = read_json(directory / "tokenizer.json")
        config = read_json(directory / "tokenizer_config.json")
        special_map = read_json(directory / "special_tokens_map.json")
        special: dict[str, str] = {}
        for role in ROLES:
            for place in (config, special_map):
                text = _text(place.get(f"{role}_token"))
                if text:
                    special.setdefault(role, text)
        return cls(
            directory=directory,
            definition=definition,
            config=config,
            model_config=read_json(directory / "config.json"),
            generation=read_json(directory / "generation_config.json"),
            added=_added_tokens(directory, definition, config, set(special.values())),
            special=special,
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file.

    Raises:
        InvalidModelError: It is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelError(f"{one_line(path.name, 80)} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise InvalidModelError(f"{one_line(path.name, 80)} does not hold an object.", "Pull the model again.")
    return content


def load_tokenizer(directory: Path) -> "Tokenizer":
    """The tokenizer.json of ``directory``, ready to encode.

    Raises:
        InvalidModelError: The library cannot load it.
    """
    from tokenizers import Tokenizer  # 30 ms, and a native library

    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more precise
        raise InvalidModelError(f"tokenizer.json cannot be loaded: {error}.", "Pull the model again.") from error


def _added_tokens(
    directory: Path, definition: Mapping[str, Any], config: Mapping[str, Any], special: set[str]
) -> dict[int, AddedToken]:
    """Added tokens by id: tokenizer.json says most, the two other files serve where it is absent."""
    try:
        if definition:
            rows = [(int(row["id"]), row) for row in definition.get("added_tokens") or ()]
        else:
            older = read_json(directory / "added_tokens.json")
            rows = [(int(index), {"content": text, "special": text in special}) for text, index in older.items()]
            rows += [(int(index), row) for index, row in (config.get("added_tokens_decoder") or {}).items()]
        return {index: AddedToken(str(row["content"]), bool(row.get("special"))) for index, row in rows}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidModelError("The tokenizer's added tokens are not of a known form.") from error


def _text(token: Any) -> str:
    """A special token's text: it is written as a string, or as an object with flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
