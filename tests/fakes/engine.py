"""Scripted engines: no llama.cpp and no process, but the same protocol."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.errors import EngineDiedError, LocalLLMError, RequestError
from localllm.models.manifest import Manifest, ModelFile, write_manifest
from localllm.paths import Home
from serve.engine.types import (
    Delta,
    Embeddings,
    EngineInfo,
    EngineSpec,
    Finished,
    GenerateEvent,
    GenerateRequest,
    PromptLogprobs,
    Scores,
    Started,
    TokenLogprob,
    Usage,
)
from serve.toolcalls.types import ToolFormat
from tests.fakes.gguf_files import write_tiny_gguf

if TYPE_CHECKING:
    from serve.engine.step_meter import StepReport

N_EMBD = 4


@dataclass
class Script:
    """What an engine answers: ``texts`` one by one, then ``error`` or a normal end.

    ``hold`` is the number of texts after which it waits for ``gate`` (None: never); ``refuse`` is raised before
    anything is sent. ``tool_format`` of the first one is the model's.
    """

    texts: Sequence[str] = ("Hello", " world", ".")
    error: LocalLLMError | None = None
    refuse: LocalLLMError | None = None
    hold: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    tool_format: ToolFormat = "plain"


class ScriptedEngine:
    """An engine that answers by ``scripts`` (the last one again and again) and notes what happens to it."""

    def __init__(self, spec: EngineSpec, scripts: list[Script], pid: int) -> None:
        self.spec = spec
        self.requests: list[GenerateRequest] = []
        self.inputs: list[Sequence[str | Sequence[int]]] = []
        self.reranked: list[tuple[str, Sequence[str]]] = []
        self.counted: list[GenerateRequest] = []
        self.active = 0
        self.most_active = 0
        self.cancelled = 0
        self.closed = False
        self.steps: StepReport | None = None
        self._scripts = scripts
        self._died = asyncio.Event()
        self._info = EngineInfo("llama", spec.n_ctx or 256, 256, 275, N_EMBD, 1, True, pid, scripts[0].tool_format)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def alive(self) -> bool:
        return not self._died.is_set() and not self.closed

    def die(self) -> None:
        """As if the process had been killed."""
        self._died.set()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.requests.append(request)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        done = False
        try:
            self._check()
            if script.refuse is not None:
                raise script.refuse
            yield Started(n_prompt=5, n_cached=2)
            if request.prompt_logprobs:
                yield PromptLogprobs(_prompt_logprobs(request))
            stop = ""
            for count, text in enumerate(script.texts[: request.max_tokens]):
                # Good enough for a script: a stop string in one of its texts ends the answer with that text.
                stop = stop or next((stop for stop in request.stop if stop in text), "")
                await self._hold(script, count)
                yield Delta(text, 1, _logprobs(request, text.encode()))
            await self._hold(script, len(script.texts))
            if script.error is not None:
                raise script.error
            done = True
            if request.max_tokens is not None and request.max_tokens <= len(script.texts):
                yield Finished("length", Usage(5, 2, request.max_tokens, 0.25, 0.5))
            else:
                yield Finished("stop", Usage(5, 2, len(script.texts) + 1, 0.25, 0.5), stop)
        finally:
            self.active -= 1
            if not done and script.error is None and script.refuse is None and self.alive:
                self.cancelled += 1

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        self._check()
        self.inputs.append(inputs)
        return Embeddings(tuple((1.0, 0.0, float(index), -0.5) for index in range(len(inputs))), 3 * len(inputs))

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """The better, the more often a document holds the query."""
        self._check()
        self.reranked.append((query, documents))
        return Scores(tuple(float(document.count(query)) for document in documents), 2 * len(documents))

    async def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Five, as ``Started`` says."""
        self._check()
        self.counted.append(request)
        if self._scripts[0].refuse is not None:
            raise self._scripts[0].refuse
        return [256, *b"abcd"]

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """One token a byte; BOS is 256, ``<s>`` where it may be special."""
        self._check()
        pieces = text.split("<s>") if parse_special else [text]
        tokens = [token for piece in pieces for token in (256, *piece.encode())][1:]
        return [256, *tokens] if add_special else tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        self._check()
        if any(token > 256 for token in tokens):
            raise RequestError("A token is outside the vocabulary.", "", "tokens")
        return b"".join(b"<s>" if token == 256 else bytes([token]) for token in tokens).decode(errors="replace")

    async def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if not self.alive:
            raise EngineDiedError("The model's process has ended.", "Ask again; it starts anew.")

    async def _hold(self, script: Script, count: int) -> None:
        await asyncio.sleep(0)
        if script.hold == count:
            waits = [asyncio.ensure_future(event.wait()) for event in (script.gate, self._died)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        self._check()


def _logprobs(request: GenerateRequest, *texts: bytes) -> tuple[TokenLogprob, ...]:
    if request.n_logprobs is None:
        return ()
    return tuple(
        TokenLogprob(7, text, -0.5, ((text, -0.5), (b"\xe2\x80", -1.5), (b"z", -math.inf))[: request.n_logprobs])
        for text in texts
    )


def _prompt_logprobs(request: GenerateRequest) -> tuple[TokenLogprob, ...]:
    """A BOS, then a token a byte."""
    raw = request.prompt.encode() if isinstance(request.prompt, str) else bytes(request.prompt or ())
    bos = TokenLogprob(256, b"<s>", None)
    return (bos, *_logprobs(request, *(bytes([byte]) for byte in raw)))


class EngineStarter:
    """A ``start_engine`` whose engines are scripted.

    Attributes:
        scripts: For the engines that are started from now on.
        started: Every engine so far.
        errors: Raised by the next starts, first to last; None starts normally.
        gate: A start waits for it; set by default.
        on_start: Called with the spec at every start.
    """

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts) or [Script()]
        self.started: list[ScriptedEngine] = []
        self.errors: list[LocalLLMError | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.log_paths: list[Path] = []
        self.attempts = 0
        self.on_start: Callable[[EngineSpec], None] = lambda spec: None

    async def __call__(self, spec: EngineSpec, *, log_path: Path) -> ScriptedEngine:
        self.attempts += 1
        self.on_start(spec)
        self.log_paths.append(log_path)
        await self.gate.wait()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        engine = ScriptedEngine(spec, self.scripts, pid=1000 + len(self.started))
        self.started.append(engine)
        return engine


def add_model(home: Home, name: str, variant: str = "f16", form: str = "gguf", sha256: str = "") -> Manifest:
    """Put a tiny model into the store of ``home``."""
    directory = home.models / name / variant
    directory.mkdir(parents=True)
    path = write_tiny_gguf(directory / "model.gguf")
    manifest = Manifest(
        name=name,
        variant=variant,
        source="test",
        format=form,
        files=(ModelFile("model.gguf", path.stat().st_size, sha256 or "0" * 64),),
        created="2026-01-02T03:04:05+00:00",
    )
    write_manifest(directory, manifest)
    return manifest
