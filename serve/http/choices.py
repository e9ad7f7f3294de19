"""The choices of one answer: what each event of an engine adds to them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.engine.types import Delta, Finished, GenerateEvent, GenerateRequest, PromptLogprobs, Started
from serve.http.logprobs import ChatLogprobs, TextLogprobs

Kind = Literal["chat", "text"]  # /v1/chat/completions or /v1/completions


@dataclass(frozen=True)
class Piece:
    """More of a choice.

    Attributes:
        text: More text; may be empty where only log-probabilities came.
        logprobs: As the API reports them; None when they were not asked for.
    """

    text: str
    logprobs: dict[str, Any] | None = None


@dataclass
class Choice:
    """One choice on its way.

    Attributes:
        kind: For which API.
        request: What it answers.
        echo: The prompt's text, to be put before the answer; None to leave it out.
    """

    kind: Kind
    request: GenerateRequest
    echo: str | None = None
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
            case Delta(text=text) if self.request.n_logprobs is None:
                yield Piece(text)
            case Delta(text=text, logprobs=tokens):
                yield Piece(text, self._reporter.fields(tokens))

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
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.kind == "chat"
            else {"text": text}
        )
        parts = [piece.logprobs for piece in self._pieces if piece.logprobs is not None]
        logprobs = None if self.request.n_logprobs is None else self._reporter.joined(parts)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": self.end.reason}

    @property
    def _reporter(self) -> ChatLogprobs | TextLogprobs:
        return self._chat if self.kind == "chat" else self._text
