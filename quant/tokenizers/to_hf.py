"""From the metadata of a GGUF file to the tokenizer files that transformers and mlx-lm load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.sanitize import one_line
from quant.tokenizers import byte_level, scored, wordpiece
from quant.tokenizers.special import ADD_BOS, ADD_EOS
from quant.tokenizers.templates import write_templates
from quant.tokenizers.token_types import END_OF_GENERATION, EOM_KEY, EOT_KEY, SPECIAL_KEYS, TokenType
from quant.tokenizers.vocabulary import Vocabulary

_WITHOUT_LIMIT = 10**30  # transformers' own number for it


def write_hf_tokenizer(metadata: Mapping[str, Any], directory: Path, architecture: str) -> None:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the chat templates.

    Args:
        metadata: Every key of the GGUF file, arrays included.
        directory: Where to write; it exists.
        architecture: ``general.architecture``.

    Raises:
        InvalidModelError: The tokenizer is damaged, or of a kind or with a pre-tokenizer that is not known.
        DiskFullError: There is no room.
    """
    kind = str(metadata.get("tokenizer.ggml.model", ""))
    try:
        vocabulary = Vocabulary.read(metadata)
        definition = _definition(metadata, vocabulary, kind, architecture)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidModelError(
            f"The GGUF file's tokenizer is of no known form ({type(error).__name__}: {one_line(str(error), 80)}).",
            "Pull the model again.",
        ) from error
    definition = {"version": "1.0", "truncation": None, "padding": None} | definition
    texts = {index: text for text, index in definition["model"]["vocab"].items()}
    special = _special(metadata, texts)
    templates = write_templates(metadata, directory)
    _write(directory / "tokenizer.json", definition)
    _write(directory / "tokenizer_config.json", _config(metadata, architecture, kind, special) | templates)
    _write(directory / "special_tokens_map.json", special)
    if kind != "bert":
        _write(directory / "generation_config.json", _generation(metadata, vocabulary))


def _definition(metadata: Mapping[str, Any], vocabulary: Vocabulary, kind: str, architecture: str) -> dict[str, Any]:
    match kind:
        case "gpt2":
            return byte_level.from_gguf(metadata, vocabulary)
        case "llama":
            return scored.from_gguf(metadata, vocabulary, architecture)
        case "bert":
            return wordpiece.from_gguf(metadata, vocabulary)
    raise InvalidModelError(
        f"Tokenizers of the kind {one_line(kind, 40)!r} cannot be converted.", "The kinds gpt2, llama and bert can."
    )


def _config(metadata: Mapping[str, Any], architecture: str, kind: str, special: Mapping[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; the classes of families build parts of it anew.
        "tokenizer_class": "BertTokenizer" if kind == "bert" else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": kind == "bert",
        "model_max_length": metadata.get(f"{architecture}.context_length", _WITHOUT_LIMIT),
        **special,
    }
    if kind == "bert":
        return config | {"do_lower_case": bool(metadata.get("tokenizer.ggml.normalizer.lowercase", True))}
    for key, name in ((ADD_BOS, "add_bos_token"), (ADD_EOS, "add_eos_token")):
        if isinstance(metadata.get(key), bool):
            config[name] = metadata[key]
    return config


def _special(metadata: Mapping[str, Any], texts: Mapping[int, str]) -> dict[str, str]:
    """Texts of the special tokens, as tokenizer_config.json names them."""
    bert = metadata.get("tokenizer.ggml.model") == "bert"
    found = {}
    for role, key in SPECIAL_KEYS.items():
        index = metadata.get(key)
        if bert and role in ("bos", "eos"):
            continue  # BERT calls them cls and sep
        if isinstance(index, int) and index in texts:
            found[f"{role}_token"] = texts[index]
    if bert:
        defaults = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
        known = set(texts.values())
        found = {f"{role}_token": text for role, text in defaults.items() if text in known} | found
    return found


def _generation(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """What ends an answer: the tokens that the file names, and those at which llama.cpp stops by their text."""
    ends = [metadata[key] for key in (SPECIAL_KEYS["eos"], EOT_KEY, EOM_KEY) if isinstance(metadata.get(key), int)]
    ends += [
        index
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=False))
        if kind == TokenType.CONTROL and text in END_OF_GENERATION
    ]
    content: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))} if ends else {}
    for role in ("bos", "pad"):
        if isinstance(metadata.get(SPECIAL_KEYS[role]), int):
            content[f"{role}_token_id"] = metadata[SPECIAL_KEYS[role]]
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    # A vocabulary laid out in lines is twice as large.
    indent = None if path.name == "tokenizer.json" else 2
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")
