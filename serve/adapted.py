"""An engine seen through adapters: what is asked of it is computed with them."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from localllm.errors import RequestError
from serve.engine.step_meter import StepReport
from serve.engine.types import Embeddings, Engine, EngineInfo, GenerateEvent, GenerateRequest, Scores


class AdaptedEngine:
    """:class:`serve.engine.types.Engine` that adds adapters to every request.

    Args:
        adapters: Path and scale of each.

    Attributes:
        engine: Does the work.
    """

    def __init__(self, engine: Engine, adapters: tuple[tuple[str, float], ...]) -> None:
        self.engine = engine
        self._adapters = adapters

    @property
    def info(self) -> EngineInfo:
        """As in :class:`serve.engine.types.Engine`, like all that follows."""
        return self.engine.info

    @property
    def steps(self) -> StepReport | None:
        """What its steps took, with whatever adapters."""
        return self.engine.steps

    @property
    def alive(self) -> bool:
        """False once its process has ended."""
        return self.engine.alive

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Stream one completion, computed with the adapters."""
        adapted = self.engine.generate(replace(request, adapters=self._adapters))
        async with aclosing(cast("AsyncGenerator[GenerateEvent, None]", adapted)) as events:
            async for event in events:
                yield event

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:  # noqa: ARG002 - the interface's own
        """Refuse, as :meth:`embed` does."""
        raise RequestError("Documents are ranked without adapters.", "Name the model alone.", "model")

    async def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """The token ids of a request's prompt; adapters change nothing here."""
        return await self.engine.prompt_tokens(request)

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:  # noqa: ARG002 - the interface's own
        """Refuse: embeddings are computed in a context of their own, without adapters."""
        raise RequestError("Embeddings are made without adapters.", "Name the model alone.", "model")

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text; adapters change nothing here."""
        return await self.engine.tokenize(text, add_special=add_special, parse_special=parse_special)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self.engine.detokenize(tokens)

    async def close(self) -> None:
        """End the engine's process."""
        await self.engine.close()
