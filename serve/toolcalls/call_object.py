"""Reads one call, ``{"name": …, "arguments": {…}}``, from text that comes in pieces."""

import json
from collections.abc import Collection

_NAME_KEYS = frozenset({"name", "function"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})
_OTHER_KEYS = frozenset({"type", "id"})
_SPACE = " \t\r\n"


class NotACallError(Exception):
    """What was read is no call of a known tool."""


class JsonValue:
    """Finds where one JSON value ends. It checks brackets and quotes, not the whole grammar."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    def take(self, character: str) -> tuple[bool, bool]:
        """Take one character: whether it belongs to the value, and whether the value is complete."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
            return True, not self._in_string and self._depth == 0
        if self._begun and self._depth == 0 and character in ",]}" + _SPACE:
            return False, True  # what ends a number or a word is not a part of it
        self._begun = True
        if character == '"':
            self._in_string = True
        elif character in "[{":
            self._depth += 1
        elif character in "]}":
            self._depth -= 1
            return True, self._depth <= 0
        return True, False


class CallObject:
    """One call, character by character.

    The arguments stream as soon as the name is known; where they come first they are kept until then.

    Args:
        names: The tools that may be called.

    Attributes:
        name: The tool's name, once it is known.
        complete: The closing brace has been read.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self.name: str | None = None
        self.complete = False
        self._state = "open"
        self._key = ""
        self._value = JsonValue()
        self._raw: list[str] = []  # of the value being read, where it does not stream
        self._kept: str | None = None  # arguments that came before the name
        self._streams = False  # the value being read is passed on as it comes
        self._told = False  # some of the arguments have been passed on

    def take(self, character: str) -> str:
        """Take one character; return what is new of the arguments (often nothing).

        Raises:
            NotACallError: This is no call, or of a tool that does not exist.
        """
        if self._state == "value":
            return self._take_value(character)
        if character in _SPACE:
            return ""
        match self._state, character:
            case "open", "{":
                self._state = "key"
            case (("key" | "next"), '"'):
                self._state, self._value, self._raw = "in key", JsonValue(), []
                return self._take_key(character)
            case "next", ",":
                self._state = "key"
            case "next", "}":
                return self._end()
            case "colon", ":":
                self._state, self._value, self._raw = "value", JsonValue(), []
            case "in key", _:
                return self._take_key(character)
            case _:
                raise NotACallError
        return ""

    def _take_key(self, character: str) -> str:
        self._raw.append(character)
        _, complete = self._value.take(character)
        if complete:
            self._key = str(_loads("".join(self._raw)))
            # Anything else is a JSON object that means something else: its text is not to be held back.
            if self._key not in _NAME_KEYS | _ARGUMENT_KEYS | _OTHER_KEYS:
                raise NotACallError
            self._state = "colon"
        return ""

    def _take_value(self, character: str) -> str:
        if not self._raw:
            if character in _SPACE:
                return ""
            self._streams = self._key in _ARGUMENT_KEYS and self.name is not None and character == "{"
        belongs, complete = self._value.take(character)
        if belongs:
            self._raw.append(character)
        new = ""
        if self._streams and belongs:
            self._told, new = True, character
        if complete:
            self._state = "next"
            if not self._streams:
                new = self._settle("".join(self._raw))
            if not belongs:
                new += self.take(character)
        return new

    def _settle(self, raw: str) -> str:
        """A value that did not stream is complete."""
        if self._key in _NAME_KEYS and self.name is None:
            name = _loads(raw)
            if name not in self._names:
                raise NotACallError
            self.name = str(name)
            kept, self._kept = self._kept, None
            self._told = kept is not None
            return kept or ""
        if self._key in _ARGUMENT_KEYS:
            value = _loads(raw)
            if isinstance(value, str):  # some models write the arguments as a string that holds JSON
                raw, value = value, _loads(value)
            if value is None:
                raw, value = "{}", {}
            if not isinstance(value, dict):
                raise NotACallError
            if self.name is None:
                self._kept = raw
                return ""
            self._told = True
            return raw
        return ""

    def _end(self) -> str:
        if self.name is None:
            raise NotACallError
        self.complete = True
        return "" if self._told else "{}"


def _loads(raw: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise NotACallError from error
