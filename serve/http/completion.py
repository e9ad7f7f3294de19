"""One whole completion, for the APIs that have one choice in an answer."""

from contextlib import aclosing
from dataclasses import dataclass

from serve.engine.types import Delta, Engine, Finished, GenerateRequest, TokenLogprob
from serve.http.fanout import generate_all


@dataclass(frozen=True)
class Completion:
    """What an engine made of one request.

    Attributes:
        text: The answer.
        finished: Why it ended, and what it took.
        logprobs: Of its tokens, when they were asked for.
    """

    text: str
    finished: Finished
    logprobs: tuple[TokenLogprob, ...] = ()


async def complete(engine: Engine, request: GenerateRequest) -> Completion:
    """Run ``request`` to its end.

    Raises:
        LocalLLMError: As :meth:`Engine.generate`.
    """
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    finished: Finished | None = None
    async with aclosing(generate_all(engine, [request])) as events:
        async for _, event in events:
            match event:
                case Delta(text=text, logprobs=tokens):
                    texts.append(text)
                    logprobs.extend(tokens)
                case Finished():
                    finished = event
    assert finished is not None, "an engine's events end with Finished or with an error"
    return Completion("".join(texts), finished, tuple(logprobs))
