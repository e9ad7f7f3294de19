"""Text from a model, a file or a network, made safe to show in a terminal.

A control character never reaches the terminal as such: it is shown as its picture, so that nothing is hidden
and text cut at any place stays safe (no state is needed between the pieces of a stream).
"""

_KEPT = "\n\t"
_PICTURES: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT}
_PICTURES[0x7F] = "\u2421"
# C1 controls: some terminals read them as escape sequences.
_PICTURES.update(dict.fromkeys(range(0x80, 0xA0), "\ufffd"))
# Direction overrides and isolates reorder what a person reads; line and paragraph separators break layouts.
_PICTURES.update(dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"))
_PICTURES.update({0x2028: "\n", 0x2029: "\n"})
# Tag characters carry text that nobody sees.
_PICTURES.update(dict.fromkeys(range(0xE0000, 0xE0080)))
_TABLE = str.maketrans(_PICTURES)


def printable(text: str) -> str:
    r"""``text`` with every control character made visible; ``\n`` and ``\t`` stay, ``\r\n`` becomes ``\n``."""
    return text.replace("\r\n", "\n").translate(_TABLE)


def one_line(text: str, limit: int = 0) -> str:
    """:func:`printable`, with all white space folded to single spaces, and cut with an ellipsis past ``limit``."""
    line = " ".join(printable(text).split())
    return line if not limit or len(line) <= limit else line[: limit - 1].rstrip() + "…"
