"""Finds tool calls in text that is still being written."""

from collections.abc import Callable, Collection, Mapping

from serve.toolcalls.call_object import NotACallError
from serve.toolcalls.readers import FencedCalls, Found, JsonCalls, NamedCall, Reader
from serve.toolcalls.types import CallArguments, CallStart, Part, TextPart, ToolFormat

MakeReader = Callable[[Collection[str]], Reader]


def _hermes(names: Collection[str]) -> Reader:
    return JsonCalls(names, "</tool_call>")


_MARKS: Mapping[ToolFormat, Mapping[str, MakeReader]] = {
    "hermes": {"<tool_call>": _hermes},
    "llama3": {"<|python_tag|>": JsonCalls},
    "mistral": {"[TOOL_CALLS]": JsonCalls},
    "mistral_args": {"[TOOL_CALLS]": NamedCall},
    "plain": {"```tool_code": FencedCalls, "```tool_call": FencedCalls, "```json": FencedCalls},
}
# Formats whose answer may be a call from its first character on, without a mark.
_BARE: Mapping[ToolFormat, str] = {"llama3": "{[", "plain": "{["}


class ToolCallParser:
    """Reads one answer. How it is cut into pieces changes nothing; an answer without calls comes out as it went in.

    White space around calls is dropped. What looks like a call but is none, or is one of a tool that does not exist,
    is text.

    Args:
        tool_format: How the model writes calls.
        names: The tools that may be called.
        max_calls: Calls after this many are dropped; None keeps all.

    Attributes:
        n_calls: Calls found so far.
    """

    def __init__(self, tool_format: ToolFormat, names: Collection[str], max_calls: int | None = None) -> None:
        self.n_calls = 0
        self._names = frozenset(names)
        self._max_calls = max_calls
        self._marks = _MARKS[tool_format]
        self._bare = _BARE.get(tool_format, "")
        self._pending = ""  # not looked at yet, or it may be the beginning of a mark
        self._reader: Reader | None = None
        self._held = ""  # what the reader has taken without finding a call
        self._found = False  # the reader has found a call
        self._at_start = True
        self._parts: list[Part] = []

    def begin(self, text: str) -> None:
        """Take what the answer begins with and does not repeat; it never comes out as text.

        Args:
            text: The opening mark of a call and what stands before its name.
        """
        self.feed(text)
        self._held = self._pending = ""

    def feed(self, text: str) -> list[Part]:
        """Take more text; return the parts that are certain now."""
        self._pending += text
        while self._pending:
            if self._reader is not None:
                self._read(self._reader)
            elif not self._open():
                break
        return self._take_parts()

    def finish(self) -> list[Part]:
        """The answer has ended; return what was held back."""
        if self._reader is not None:
            self._tell(self._reader.finish())
            self._leave()
        elif self._pending.strip() or not self.n_calls:
            self._text(self._pending)
        self._pending = ""
        return self._take_parts()

    def _open(self) -> bool:
        """Look for a mark in the pending text; False when more of it is needed."""
        place, mark = min(
            ((at, mark) for mark in self._marks if (at := self._pending.find(mark)) >= 0), default=(-1, "")
        )
        if self._at_start and place != 0:
            begin = self._pending.lstrip()
            if not begin:
                return False
            if begin[0] in self._bare:
                self._enter(JsonCalls(self._names), len(self._pending) - len(begin))
                return True
        if place < 0:
            certain = self._pending[: len(self._pending) - self._overlap()].rstrip()
            self._text(certain)
            self._pending = self._pending[len(certain) :]
            return False
        before = self._pending[:place].rstrip()
        self._text(before)
        self._pending = self._pending[len(before) :]
        self._enter(self._marks[mark](self._names), place - len(before) + len(mark))
        return True

    def _enter(self, reader: Reader, n_held: int) -> None:
        self._reader, self._found = reader, False
        self._held, self._pending = self._pending[:n_held], self._pending[n_held:]

    def _read(self, reader: Reader) -> None:
        for place, character in enumerate(self._pending):
            try:
                self._tell(reader.take(character))
            except NotACallError:
                self._pending = self._pending[place:]
                self._leave()
                return
            self._held += character
            if reader.done:
                self._pending = self._pending[place + 1 :]
                self._leave()
                return
        self._pending = ""

    def _leave(self) -> None:
        if not self._found:
            self._text(self._held)
        self._reader, self._held, self._at_start = None, "", False

    def _tell(self, found: list[Found]) -> None:
        for name, arguments in found:
            if name is not None:
                self._found = True
                self.n_calls += 1
                if self._wanted:
                    self._parts.append(CallStart(self.n_calls - 1, name))
            if self._wanted:
                self._parts.append(CallArguments(self.n_calls - 1, arguments))

    @property
    def _wanted(self) -> bool:
        return self._max_calls is None or self.n_calls <= self._max_calls

    def _text(self, text: str) -> None:
        if text:
            self._at_start = False
            self._parts.append(TextPart(text))

    def _overlap(self) -> int:
        """Length of the longest end of the pending text that begins a mark."""
        longest = min(max(map(len, self._marks)) - 1, len(self._pending))
        for n in range(longest, 0, -1):
            if any(mark.startswith(self._pending[-n:]) for mark in self._marks):
                return n
        return 0

    def _take_parts(self) -> list[Part]:
        """The parts so far, neighbours of a kind joined."""
        parts: list[Part] = []
        for part in self._parts:
            match parts[-1] if parts else None, part:
                case TextPart(before), TextPart(text):
                    parts[-1] = TextPart(before + text)
                case CallArguments(index, before), CallArguments(same, text) if index == same:
                    parts[-1] = CallArguments(index, before + text)
                case _:
                    parts.append(part)
        self._parts = []
        return parts
