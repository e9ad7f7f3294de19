"""Where llama.cpp is known to give other token ids than the Hugging Face tokenizer, whatever the file says.

WordPiece's were found by comparing every assigned character, NFC and CASE on mixed text (docs/LOG.md); PREFIX and STRIP
are read from its source. A reason says that a text is of a kind that may differ, not that it is why this one did.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

NFC = "text is not normalized to NFC"
CASE = "upper and lower case and combining marks outside ASCII are not told apart"
HANGUL = "WordPiece drops the vowels of Hangul"
MARKS = "WordPiece drops spacing marks as if they were accents"
SPACES = "WordPiece splits at vertical tabs, form feeds and U+0085"
TABLES = "WordPiece knows other versions of Unicode's punctuation"
LONG_WORD = "WordPiece splits words of more than 100 characters"
PREFIX = "a space is put after every special token"
STRIP = "special tokens do not swallow the white space beside them"

_LONG_WORD = re.compile(r"\S{101}")


def known_reason(text: str, definition: Mapping[str, Any]) -> str:
    """Why llama.cpp may give other ids for ``text``; empty when nothing known applies.

    Args:
        text: Any.
        definition: The tokenizer.json.
    """
    if definition["model"].get("type") == "WordPiece":
        return _wordpiece(text)
    if '"NFC"' in json.dumps(definition.get("normalizer")) and not unicodedata.is_normalized("NFC", text):
        return NFC
    # llama.cpp has no classes of case: it takes all letters but a-z for upper case, and all but A-Z for lower case.
    if r"\p{Lu}" in str(definition.get("pre_tokenizer")) and any(
        unicodedata.category(character) in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me") and not character.isascii()
        for character in text
    ):
        return CASE
    added = [row for row in definition.get("added_tokens") or () if row["content"] in text]
    if added and '"first"' in json.dumps(definition.get("pre_tokenizer")):
        return PREFIX
    return STRIP if any(row.get("lstrip") or row.get("rstrip") for row in added) else ""


def _wordpiece(text: str) -> str:
    if any("\uac00" <= character <= "\ud7a3" for character in text):
        return HANGUL
    if any(character in text for character in "\x0b\x0c\x85"):
        return SPACES
    kinds = {unicodedata.category(character) for character in text}
    if kinds & {"Mc", "Me"}:
        return MARKS
    newer = [unicodedata.category(character) for character in text if character >= "\u0600"]
    if "\u2581" in text or any(kind[0] == "P" or kind in ("Mn", "Cf", "So") for kind in newer):
        return TABLES
    return LONG_WORD if _LONG_WORD.search(text) else ""
