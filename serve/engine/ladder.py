"""Starting llama.cpp in the way that works on this machine, and in a lower one where a model dies at its first work.

A library may have been built on another machine, and a virtual machine may move. So the way is looked up, or probed at
the first use (:mod:`localllm.native.llama_verdict`), and an engine whose process crashes before it has done anything is
started anew one way lower. Its requests are answered, not lost: nothing has reached a client by then.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from localllm.errors import EngineCrashError, EngineLoadError
from localllm.native.environment import blas_environment
from localllm.native.llama_params import WAY_VARIABLE, Way
from localllm.native.llama_verdict import Verdict, lower_verdict, prove_llama
from localllm.native.processor import read_processor
from localllm.paths import Home
from serve.engine.process import start_engine
from serve.engine.step_meter import StepReport
from serve.engine.types import (
    Embeddings,
    Engine,
    EngineInfo,
    EngineSpec,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Scores,
    Started,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
MEND = "localllm doctor --mend"


class CrashingEngine(Engine, Protocol):
    """An engine that tells how its process ended."""

    @property
    def crash(self) -> str:
        """As :attr:`serve.engine.process.ProcessEngine.crash`."""


class StartProcess(Protocol):
    """Starts an engine's process; see :func:`serve.engine.process.start_engine`."""

    async def __call__(
        self, spec: EngineSpec, *, log_path: Path, environment: Mapping[str, str] | None = None
    ) -> CrashingEngine:
        """Load the model.

        Raises:
            EngineLoadError: The process could not.
        """


class LadderStarter:
    """Starts engines as this machine needs it; a :class:`serve.supervisor.StartEngine`.

    Args:
        home: Where it is kept what works.
        start: Starts a process.
        prove: Tells what works; probes where nothing is known.
    """

    def __init__(
        self, home: Home, start: StartProcess = start_engine, prove: Callable[[Home], Verdict] = prove_llama
    ) -> None:
        self._home = home
        self._start = start
        self._prove = prove

    async def __call__(self, spec: EngineSpec, *, log_path: Path) -> Engine:
        """Load the model.

        Raises:
            EngineLoadError: The process could not, or no way of loading works on this machine.
        """
        start = partial(self._start, spec, log_path=log_path)
        if spec.engine == "mlx":
            return await start(environment=await asyncio.to_thread(blas_environment, self._home))
        if WAY_VARIABLE in os.environ:  # somebody has chosen
            return await start()
        verdict = await asyncio.to_thread(self._prove, self._home)
        if verdict.way is None:
            raise hopeless(verdict, EngineLoadError(f"llama.cpp does not work on this machine: {verdict.failure}."))

        async def start_in(way: Way) -> CrashingEngine:
            return await start(environment={WAY_VARIABLE: way.name})

        async def keep(way: Way, failure: str) -> None:
            await asyncio.to_thread(lower_verdict, self._home, verdict, way, failure)

        return await LadderEngine.open(start_in, verdict, keep)


Keep = Callable[[Way, str], Awaitable[None]]


class LadderEngine:
    """An engine that goes down the ladder while its process crashes before it has done any work.

    Made by :meth:`open`.

    Args:
        start: Starts its process in a way.
        verdict: What is known; its way works, by the probe.
        keep: Writes down that a lower way was needed: which, and how the process died before.
    """

    def __init__(
        self,
        start: Callable[[Way], Awaitable[CrashingEngine]],
        verdict: Verdict,
        keep: Keep,
    ) -> None:
        assert verdict.way is not None
        self._start = start
        self._verdict = verdict
        self._keep = keep
        self._current: CrashingEngine | None = None
        self._way = verdict.way
        self._lower = verdict.lower_ways
        self._failure = ""  # of the ways above the present one
        self._lock = asyncio.Lock()
        self._has_worked = False

    @classmethod
    async def open(
        cls, start: Callable[[Way], Awaitable[CrashingEngine]], verdict: Verdict, keep: Keep
    ) -> "LadderEngine":
        """Start the process in the verdict's way, or in the first below it in which the model loads.

        Raises:
            EngineLoadError: It loads in none, or for another reason than a crash.
        """
        ladder = cls(start, verdict, keep)
        try:
            ladder._current = await start(ladder._way)
        except EngineLoadError as error:
            await ladder._go_down(None, error)
        return ladder

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
        """Whether it can still answer: a dead process is no end where a lower way is left."""
        if self._engine.alive:
            return True
        return bool(self._engine.crash) and not self._has_worked and bool(self._lower)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Stream one completion."""
        started = told = False
        while True:
            engine = self._engine
            try:
                async with aclosing(engine.generate(request)) as events:  # type: ignore[type-var]  # it is a generator
                    async for event in events:
                        if isinstance(event, Started):
                            if started:
                                continue  # the client knows
                            started = True
                        else:
                            told = True
                        if isinstance(event, Finished):
                            await self._worked()
                        yield event
            except EngineCrashError as error:
                if told:
                    raise
                await self._go_down(engine, error)
            else:
                return

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        """Embed texts or token ids."""
        found = await self._ask(lambda engine: engine.embed(inputs))
        await self._worked()
        return found

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """Score documents."""
        found = await self._ask(lambda engine: engine.rerank(query, documents))
        await self._worked()
        return found

    async def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """The token ids of a request's prompt."""
        return await self._ask(lambda engine: engine.prompt_tokens(request))

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text."""
        return await self._ask(
            lambda engine: engine.tokenize(text, add_special=add_special, parse_special=parse_special)
        )

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._ask(lambda engine: engine.detokenize(tokens))

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._engine.close()

    @property
    def _engine(self) -> CrashingEngine:
        assert self._current is not None
        return self._current

    async def _ask(self, question: Callable[[Engine], Awaitable[_T]]) -> _T:
        while True:
            engine = self._engine
            try:
                return await question(engine)
            except EngineCrashError as error:
                await self._go_down(engine, error)

    async def _go_down(self, engine: CrashingEngine | None, error: EngineCrashError) -> None:
        """Start the process in the next way in which the model loads; another request may have done so already.

        Raises:
            EngineCrashError: ``error``, where a lower way would not help or none is left.
        """
        async with self._lock:
            if self._current is not engine:
                return
            while error.crash and not self._has_worked and self._lower:
                self._failure = self._failure or error.message
                self._way, *self._lower = self._lower
                _log.warning("%s Trying whether llama.cpp %s.", error.message, self._way.words)
                try:
                    self._current = await self._start(self._way)
                except EngineLoadError as again:
                    if not again.crash:
                        raise
                    error = again
                else:
                    return
        raise hopeless(self._verdict, error) if error.crash and not self._has_worked else error

    async def _worked(self) -> None:
        """Take note that the present way works, the first time."""
        if self._has_worked:
            return
        self._has_worked = True
        if self._failure:
            await self._keep(self._way, self._failure)


def hopeless(verdict: Verdict, error: EngineCrashError) -> EngineCrashError:
    """``error`` with the likely reason and what to do about it."""
    lacking = read_processor().lacks(verdict.features)
    if lacking or verdict.way is None:
        built = f"It was built for a processor with {', '.join(lacking)}, which this one lacks. " if lacking else ""
        hint = f"{built}`{MEND}` builds llama.cpp for this machine."
    else:
        hint = (
            "llama.cpp computes rightly on this machine, as a probe has shown: the model's file may be damaged, "
            f"or of a kind that this version cannot run. `{MEND}` looks at llama.cpp again."
        )
    return type(error)(error.message, hint, error.crash)
