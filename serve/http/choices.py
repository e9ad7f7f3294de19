"""The choices of one answer: what each event of an engine adds to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.engine.types import Delta, Finished, GenerateEvent, GenerateRequest, PromptLogprobs, Started
from serve.http.logprobs import ChatLogprobs, TextLogprobs
from serve.toolcalls.parser import ToolCallParser
from serve.toolcalls.plan import new_call_id
from serve.toolcalls.types import CallArguments, CallStart, Part, TextPart, ToolFormat

Kind = Literal["chat", "text"]  # /v1/chat/completions or /v1/completions


@dataclass(frozen=True)
class Piece:
    """More of a choice.

    Attributes:
        text: More text; may be empty where only log-probabilities came.
        logprobs: As the API reports them; None when they were not asked for.
        call: The beginning or more of a tool call, as a chunk carries it; there is no text then.
    """

    text: str
    logprobs: dict[str, Any] | None = None
    call: dict[str, Any] | None = None


@dataclass
class Choice:
    """One choice on its way.

    Attributes:
        kind: For which API.
        request: What it answers.
        echo: The prompt's text, to be put before the answer; None to leave it out.
        parser: Finds tool calls; None where nothing can be called.
        tool_format: How the model writes them.
    """

    kind: Kind
    request: GenerateRequest
    echo: str | None = None
    parser: ToolCallParser | None = None
    tool_format: ToolFormat = "plain"
    _pieces: list[Piece] = field(default_factory=list)
    _finished: Finished | None = None

    def __post_init__(self) -> None:
        self._chat, self._text = ChatLogprobs(), TextLogprobs()

    def pieces(self, event: GenerateEvent) -> Iterator[Piece]:
        """What ``event`` adds, if anything."""
        match event:
            case Started() if self.echo is not None and not self.request.prompt_logprobs:
                yield Piece(self.echo)
            case PromptLogprobs(tokens=tokens) if self.echo is not None:
                scored = self.request.n_logprobs is not None
                yield Piece(self.echo, self._text.prompt_fields(tokens, self.echo) if scored else None)
            case Delta(text=text, logprobs=tokens):
                logprobs = None if self.request.n_logprobs is None else self._reporter.fields(tokens)
                if self.parser is None:
                    yield Piece(text, logprobs)
                    return
                if logprobs is not None:  # a call's tokens are reported too, but they are no part of a text
                    yield Piece("", logprobs)
                yield from self._pieces_of(self.parser.feed(text))
            case Finished() if self.parser is not None:
                yield from self._pieces_of(self.parser.finish())

    def reason(self, end: Finished) -> str:
        """OpenAI's ``finish_reason``."""
        called = self.parser is not None and self.parser.n_calls > 0
        return "tool_calls" if called and end.reason == "stop" else end.reason

    def take(self, event: GenerateEvent) -> None:
        """Keep what ``event`` adds, for an answer in one piece."""
        self._pieces.extend(self.pieces(event))
        if isinstance(event, Finished):
            self._finished = event

    @property
    def end(self) -> Finished:
        """How it ended."""
        assert self._finished is not None, "an engine's events end with Finished or with an error"
        return self._finished

    def fields(self, index: int) -> dict[str, Any]:
        """The whole choice as it is sent."""
        text = "".join(piece.text for piece in self._pieces)
        content: dict[str, Any] = {"message": self._message(text)} if self.kind == "chat" else {"text": text}
        parts = [piece.logprobs for piece in self._pieces if piece.logprobs is not None]
        logprobs = None if self.request.n_logprobs is None else self._reporter.joined(parts)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": self.reason(self.end)}

    def _message(self, text: str) -> dict[str, Any]:
        calls: list[dict[str, Any]] = []
        for piece in self._pieces:
            match piece.call:
                case {"id": call_id, "type": kind, "function": function}:
                    calls.append({"id": call_id, "type": kind, "function": dict(function)})
                case {"function": {"arguments": more}}:
                    calls[-1]["function"]["arguments"] += more
        message = {"role": "assistant", "content": text, "refusal": None}
        return message if not calls else {**message, "content": text or None, "tool_calls": calls}

    def _pieces_of(self, parts: Sequence[Part]) -> Iterator[Piece]:
        for part in parts:
            match part:
                case TextPart(text):
                    yield Piece(text)
                case CallStart(index, name):
                    head = {"id": new_call_id(self.tool_format), "type": "function"}
                    yield Piece("", call={"index": index, **head, "function": {"name": name, "arguments": ""}})
                case CallArguments(index, text):
                    yield Piece("", call={"index": index, "function": {"arguments": text}})

    @property
    def _reporter(self) -> ChatLogprobs | TextLogprobs:
        return self._chat if self.kind == "chat" else self._text
