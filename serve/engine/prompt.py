"""Keeps what a person (or a document) wrote from being read as the template's own special tokens.

A chat template writes ``<|im_end|>`` and its like between the messages, and the tokenizer turns these texts into
control tokens. The same characters inside a message must stay characters, or any document could end the user's turn
and speak as the system. They are put between two markers before the template runs, and tokenized as text after it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Unicode noncharacters: guaranteed never to be text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)
_MARKERS = str.maketrans("", "", _OPEN + _CLOSE)


def mark_message(message: dict[str, Any], find_specials: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    """``message`` with the specials in all it says marked; its ``role`` is not text."""
    return {name: value if name == "role" else mark_specials(value, find_specials) for name, value in message.items()}


def mark_specials(value: Any, find_specials: Callable[[str], Sequence[str]]) -> Any:
    """``value`` with every special text inside its strings put between markers.

    Args:
        value: Any JSON value; the names in its objects are text too.
        find_specials: The special texts that the tokenizer would find in a string.
    """
    match value:
        case str():
            text = value.translate(_MARKERS)
            specials = sorted(set(find_specials(text)), key=len, reverse=True)
            if not specials:
                return text
            pattern = "|".join(map(re.escape, specials))
            return re.sub(pattern, lambda found: _OPEN + found.group() + _CLOSE, text)
        case dict():
            return {
                mark_specials(name, find_specials): mark_specials(item, find_specials) for name, item in value.items()
            }
        case list() | tuple():
            return [mark_specials(item, find_specials) for item in value]
        case _:
            return value


def split_marked(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a rendered prompt, and whether special texts in them are the template's own."""
    end = 0
    for found in _MARKED.finditer(text):
        if found.start() > end:
            yield text[end : found.start()], True
        yield found.group(1), False
        end = found.end()
    if end < len(text) or not text:
        yield text[end:].translate(_MARKERS), True
