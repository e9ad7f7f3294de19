"""A model's markdown, made harmless: no control characters, no HTML, no images, nothing to click."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from localllm.sanitize import printable

_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced or indented block of code; ``language`` is what the fence says, or empty."""

    language: str
    text: str


def harmless(text: str) -> str:
    """Text from a model or a file as it may be drawn: printable, and half surrogate pairs replaced.

    A terminal's output is UTF-8, which has no room for half a pair: writing one would raise.
    """
    return _HALF_PAIR.sub("\ufffd", printable(text))


def safe_parser() -> MarkdownIt:
    """A parser that leaves HTML as text, turns images into text, and links into text with the address behind."""
    parser = MarkdownIt("gfm-like", {"html": False, "linkify": False})
    parser.core.ruler.push("flatten", _flatten)
    return parser


def code_blocks(markdown: str) -> tuple[CodeBlock, ...]:
    """The code blocks of a message, in order, ready to be copied."""
    tokens = safe_parser().parse(harmless(markdown))
    return tuple(
        CodeBlock(token.info.strip().partition(" ")[0], token.content.rstrip("\n"))
        for token in tokens
        if token.type in {"fence", "code_block"}
    )


def _flatten(state: StateCore) -> None:
    for token in state.tokens:
        if token.type == "inline":
            token.children = list(_without_links(token.children or ()))


def _without_links(children: Sequence[Token]) -> list[Token]:
    flat: list[Token] = []
    addresses: list[str] = []
    for child in children:
        match child.type:
            case "link_open":
                addresses.append(str(child.attrs.get("href", "")))
            case "link_close":
                flat.append(_text(_address(addresses.pop(), flat)))
            case "image":
                flat.append(_text(f"[image: {child.content}] ({child.attrs.get('src', '')})"))
            case _:
                # Entities are decoded by now: `&#x202e;` is a direction override again.
                child.content = harmless(child.content)
                flat.append(child)
    return flat


def _address(href: str, before: Sequence[Token]) -> str:
    # An autolink <https://…> shows its address already.
    shown = bool(before) and before[-1].type == "text" and before[-1].content == href
    return "" if shown or not href else f" ({href})"


def _text(content: str) -> Token:
    return Token("text", "", 0, content=harmless(content))
