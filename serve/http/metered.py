"""A supervisor whose engines are counted by :class:`serve.http.metrics.Metrics`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import cast

from localllm.memory import MachineMemory
from localllm.models.store import ModelStore
from localllm.settings import Settings
from serve.adapted import AdaptedEngine
from serve.engine.step_meter import StepReport
from serve.engine.types import Embeddings, Engine, EngineInfo, GenerateEvent, GenerateRequest, Scores
from serve.http.metrics import CompletionMeter, Metrics
from serve.registry import Served
from serve.supervisor import StartEngine, Supervisor


class MeteredSupervisor(Supervisor):
    """:class:`Supervisor`, with every completion counted.

    Args:
        metrics: Where to count.
        store, settings, machine, start_engine, logs: As :class:`Supervisor` takes them.
    """

    def __init__(
        self,
        metrics: Metrics,
        store: ModelStore,
        settings: Settings,
        machine: Callable[[], MachineMemory],
        start_engine: StartEngine,
        logs: Path,
    ) -> None:
        super().__init__(store, settings, machine, start_engine, logs)
        self._metrics = metrics
        metrics.show_models(self.loaded)

    @asynccontextmanager
    async def engine(
        self, name: str, keep_alive: float | None = None, adapters: Sequence[tuple[str, float]] = ()
    ) -> AsyncIterator[tuple[Served, Engine]]:
        """As :meth:`Supervisor.engine`."""
        async with super().engine(name, keep_alive, adapters) as (served, engine):
            # The steps are the process's, and watched once, whatever adapters its requests name.
            process = engine.engine if isinstance(engine, AdaptedEngine) else engine
            self._metrics.steps.watch(served.weights.name, process)
            yield served, MeteredEngine(engine, self._metrics, served.name)


class MeteredEngine:
    """An engine that counts its completions and is otherwise the one that it is given.

    Args:
        engine: Does the work.
        metrics: Where to count.
        model: The name to count under.
    """

    def __init__(self, engine: Engine, metrics: Metrics, model: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._model = model

    @property
    def info(self) -> EngineInfo:
        """As in :class:`serve.engine.types.Engine`, like all that follows."""
        return self._engine.info

    @property
    def steps(self) -> StepReport | None:
        """What its steps took."""
        return self._engine.steps

    @property
    def alive(self) -> bool:
        """False once its process has ended."""
        return self._engine.alive

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Stream one completion and count it."""
        meter = CompletionMeter(self._metrics, self._model)
        cancelled = False
        try:
            async with aclosing(cast("AsyncGenerator[GenerateEvent, None]", self._engine.generate(request))) as events:
                async for event in events:
                    meter.saw(event)
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            cancelled = True
            raise
        finally:
            meter.end(cancelled=cancelled)

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        """Embed texts or token ids."""
        return await self._engine.embed(inputs)

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """Score documents."""
        return await self._engine.rerank(query, documents)

    async def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """The token ids of a request's prompt."""
        return await self._engine.prompt_tokens(request)

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text."""
        return await self._engine.tokenize(text, add_special=add_special, parse_special=parse_special)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._engine.detokenize(tokens)

    async def close(self) -> None:
        """End the engine's process."""
        await self._engine.close()
