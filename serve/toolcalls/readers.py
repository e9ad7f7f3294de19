"""Readers of what follows an opening mark: call objects, Mistral's named calls, fenced code."""

import ast
import json
from collections.abc import Collection, Iterator
from typing import Protocol

from serve.toolcalls.call_object import CallObject, JsonValue, NotACallError

_SPACE = " \t\r\n"
_FENCE = "```"
_MAX_HEAD = 256  # characters before the arguments of a named call
_MAX_FENCE = 64 << 10  # characters that Python's parser is given

Found = tuple[str | None, str]
"""The name of a call that begins (None: of the one under way) and more of its arguments."""


class Reader(Protocol):
    """Reads calls, character by character.

    Attributes:
        done: What follows does not belong to it any more.
    """

    done: bool

    def take(self, character: str) -> list[Found]:
        """Take one character; return what it makes known.

        Raises:
            NotACallError: ``character`` does not belong here, or what was read is no call.
        """

    def finish(self) -> list[Found]:
        """The text has ended; return what that makes known."""


class JsonCalls:
    """Call objects, in a list or one after the other, up to a closing mark.

    Args:
        names: The tools that may be called.
        close: The mark, such as ``</tool_call>``; empty where there is none.
    """

    def __init__(self, names: Collection[str], close: str = "") -> None:
        self.done = False
        self._names = names
        self._close = close
        self._mark = ""
        self._depth = 0
        self._call: CallObject | None = None
        self._told = False

    def take(self, character: str) -> list[Found]:
        """As in :class:`Reader`."""
        call = self._call
        if call is None:
            self._between(character)
            return []
        arguments = call.take(character)
        if call.complete:
            self._call = None
        if not arguments:
            return []
        name = None if self._told else call.name
        self._told = True
        return [(name, arguments)]

    def finish(self) -> list[Found]:
        """As in :class:`Reader`."""
        return []

    def _between(self, character: str) -> None:
        if self._close.startswith(self._mark + character):
            self._mark += character
            self.done = self._mark == self._close
        elif self._mark:
            raise NotACallError
        elif character == "{":
            self._call, self._told = CallObject(self._names), False
            self._call.take(character)
        elif character == "[":
            self._depth += 1
        elif character == "]" and self._depth:
            self._depth -= 1
            # Something may stand between the list and the closing mark; without one the list is the end.
            self.done = not self._depth and not self._close
        elif character not in _SPACE + ",;":
            raise NotACallError


class NamedCall:
    """``name[ARGS]{…}``, with or without the marks between; or the list of older Mistral models.

    Args:
        names: The tools that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.done = False
        self._names = names
        self._list: JsonCalls | None = None
        self._head = ""
        self._name: str | None = None
        self._arguments: JsonValue | None = None

    def take(self, character: str) -> list[Found]:
        """As in :class:`Reader`."""
        if not self._head.strip() and self._list is None and character in "[{":
            self._list = JsonCalls(self._names)
        if self._list is not None:
            found = self._list.take(character)
            self.done = self._list.done
            return found
        if self._arguments is None:
            if character != "{":
                self._take_head(character)
                return []
            self._name = self._head.partition("[")[0].strip()
            if self._name not in self._names:
                raise NotACallError
            self._arguments = JsonValue()
        _, self.done = self._arguments.take(character)
        name, self._name = self._name, None
        return [(name, character)]

    def finish(self) -> list[Found]:
        """As in :class:`Reader`."""
        return []

    def _take_head(self, character: str) -> None:
        self._head += character
        name = self._head.partition("[")[0].strip()
        if len(self._head) > _MAX_HEAD or not any(known.startswith(name) for known in self._names):
            raise NotACallError


class FencedCalls:
    """A fence, read as a whole: JSON, or Python calls with literal keyword arguments.

    Args:
        names: The tools that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.done = False
        self._names = names
        self._text = ""

    def take(self, character: str) -> list[Found]:
        """As in :class:`Reader`."""
        self._text += character
        if not self._text.endswith(_FENCE):
            return []
        self.done = True
        return self._calls(self._text.removesuffix(_FENCE))

    def finish(self) -> list[Found]:
        """As in :class:`Reader`: a model often ends without closing its fence."""
        return self._calls(self._text.rstrip("`"))

    def _calls(self, text: str) -> list[Found]:
        return _json_calls(text, self._names) or _python_calls(text, self._names)


def _json_calls(text: str, names: Collection[str]) -> list[Found]:
    reader, found = JsonCalls(names), list[Found]()
    try:
        for character in text:
            found += reader.take(character)
    except NotACallError:
        return []
    return found


def _python_calls(text: str, names: Collection[str]) -> list[Found]:
    if len(text) > _MAX_FENCE:
        return []
    try:
        tree = ast.parse(text.strip())
        return [
            (name, json.dumps(arguments, ensure_ascii=False))
            for statement in tree.body
            for name, arguments in _calls_in(statement)
            if name in names
        ]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        # What ast.parse and literal_eval document for text that is no program, or no literal.
        return []


def _calls_in(statement: ast.stmt) -> Iterator[tuple[str, dict[str, object]]]:
    """The calls in ``f(a=1)``, ``print(f(a=1))`` and ``[f(a=1), g()]``; ``tools.f`` counts as ``f``."""
    nodes = [statement.value] if isinstance(statement, ast.Expr | ast.Assign) else []
    while nodes:
        match nodes.pop(0):
            case ast.List(elts=items) | ast.Tuple(elts=items):
                nodes = [*items, *nodes]
            case ast.Call(func=ast.Name(id="print"), args=items):
                nodes = [*items, *nodes]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[], keywords=keywords):
                yield name, {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg}
            case _:
                return
