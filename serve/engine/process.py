"""The server's side of an engine: starts its process, speaks its protocol, notices its death."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from localllm.errors import EngineDiedError, EngineLoadError, LocalLLMError
from localllm.native.crashes import crash_signal, how_it_ended
from localllm.paths import FILE_MODE
from localllm.sanitize import one_line
from serve.engine import wire
from serve.engine.step_meter import StepReport
from serve.engine.types import (
    Embeddings,
    EngineInfo,
    EngineSpec,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Scores,
)

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 3.0
# For the engine's process, unless the person has set them: no debugger attached to a dying process, and OpenMP threads
# that spin for some 50 us only while they wait for each other, then sleep. By default they spin for milliseconds, which
# is no faster on a quiet machine and several times slower beside another busy program (docs/LOG.md has the figures).
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "1000"}


class ProcessEngine:
    """:class:`serve.engine.types.Engine` in a child process. Made by :func:`start_engine`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        info: EngineInfo,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._info = info
        self._ids = count(1)
        self._jobs: dict[int, asyncio.Queue[wire.Event]] = {}
        self._alive = True
        self._steps: StepReport | None = None
        self._task = asyncio.create_task(self._read_events(), name=f"engine-{info.pid}")

    @property
    def info(self) -> EngineInfo:
        """What the model says about itself."""
        return self._info

    @property
    def steps(self) -> StepReport | None:
        """As in :class:`serve.engine.types.Engine`."""
        return self._steps

    @property
    def alive(self) -> bool:
        """False once the process has ended."""
        return self._alive and self._process.poll() is None

    @property
    def crash(self) -> str:
        """Name of the signal by which the process crashed; empty while it lives, and where it ended otherwise."""
        return _crash_name(self._process.poll())

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """As in :class:`serve.engine.types.Engine`."""
        job_id, events = self._open_job()
        finished = False
        try:
            await self._send({"op": "generate", "id": job_id, "request": wire.request_to_wire(request)})
            while not finished:
                event = await events.get()
                if isinstance(event, LocalLLMError):
                    finished = True
                    raise event
                assert not isinstance(event, Embeddings | Scores | wire.Reply)
                finished = isinstance(event, Finished)
                yield event
        finally:
            self._close_job(job_id, cancel=not finished)

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        """As in :class:`serve.engine.types.Engine`."""
        plain = [item if isinstance(item, str) else list(item) for item in inputs]
        event = await self._ask({"op": "embed", "inputs": plain})
        assert isinstance(event, Embeddings)
        return event

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """As in :class:`serve.engine.types.Engine`."""
        event = await self._ask({"op": "rerank", "query": query, "documents": list(documents)})
        assert isinstance(event, Scores)
        return event

    async def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """As in :class:`serve.engine.types.Engine`."""
        event = await self._ask({"op": "prompt_tokens", "request": wire.request_to_wire(request)})
        assert isinstance(event, wire.Reply)
        return list(event.value)

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """As in :class:`serve.engine.types.Engine`."""
        options = {"add_special": add_special, "parse_special": parse_special}
        event = await self._ask({"op": "tokenize", "text": text, "options": options})
        assert isinstance(event, wire.Reply)
        return list(event.value)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """As in :class:`serve.engine.types.Engine`."""
        event = await self._ask({"op": "detokenize", "tokens": list(tokens)})
        assert isinstance(event, wire.Reply)
        return str(event.value)

    async def close(self) -> None:
        """End the process: asked first, killed after three seconds."""
        if self.alive:
            with contextlib.suppress(EngineDiedError):
                await self._send({"op": "close"})
        self._writer.close()
        await asyncio.to_thread(_end, self._process)
        await self._task

    async def _ask(self, message: dict[str, Any]) -> wire.Event:
        """Send a question that has one answer; return it, or raise the error that it is."""
        job_id, events = self._open_job()
        answered = False
        try:
            await self._send({**message, "id": job_id})
            event = await events.get()
            answered = True
        finally:
            self._close_job(job_id, cancel=not answered)
        if isinstance(event, LocalLLMError):
            raise event
        return event

    def _open_job(self) -> tuple[int, asyncio.Queue[wire.Event]]:
        if not self.alive:
            raise self._death()
        job_id = next(self._ids)
        events: asyncio.Queue[wire.Event] = asyncio.Queue()
        self._jobs[job_id] = events
        return job_id, events

    def _close_job(self, job_id: int, *, cancel: bool) -> None:
        # Runs inside generator clean-up, so it must not wait: the frame goes into the transport's buffer.
        if self._jobs.pop(job_id, None) is not None and cancel and self.alive and not self._writer.is_closing():
            self._writer.write(wire.encode_frame({"op": "cancel", "id": job_id}))

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            self._writer.write(wire.encode_frame(message))
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise self._death() from error

    async def _read_events(self) -> None:
        """Hand each event to its job until the pipe closes; then tell every job that is left."""
        try:
            while (message := await _receive(self._reader)) is not None:
                if "steps" in message:
                    self._steps = StepReport.from_wire(message["steps"])
                for record in message["events"]:
                    job_id, event = wire.event_from_wire(record)
                    events = self._jobs.get(job_id)
                    if events is not None:  # None: cancelled while the event was under way
                        events.put_nowait(event)
        finally:
            self._alive = False
            self._writer.close()
            await asyncio.to_thread(_end, self._process)
            log.info("engine process %d ended with code %s", self._info.pid, self._process.returncode)
            for events in self._jobs.values():
                events.put_nowait(self._death())

    def _death(self) -> EngineDiedError:
        code = self._process.returncode
        return EngineDiedError(
            f"The process that held the model ended in the middle of its work: {how_it_ended(code)}.",
            "Ask again: the model is loaded anew.",
            _crash_name(code),
        )


async def start_engine(
    spec: EngineSpec, *, log_path: Path, environment: Mapping[str, str] | None = None
) -> ProcessEngine:
    """Start an engine's process and wait until its model is loaded.

    Args:
        spec: What to load and how.
        log_path: Where llama.cpp's own messages go (0600); they never hold a prompt.
        environment: Variables for it besides this process's own, as :mod:`localllm.native.environment` has them.

    Raises:
        EngineLoadError: The model cannot be loaded; with llama.cpp's last words.
    """
    # In a thread: starting a process takes milliseconds that other requests' tokens would wait for.
    process, ours = await asyncio.to_thread(_spawn, log_path, environment or {})
    try:
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(wire.encode_frame({"load": asdict(spec)}))
        message = await _receive(reader)
    except BaseException:  # cancelled while loading: nobody will use this process
        process.kill()
        ours.close()
        await asyncio.to_thread(process.wait)
        raise
    match message:
        case {"ready": info}:
            return ProcessEngine(process, reader, writer, EngineInfo(**info))
    writer.close()
    await asyncio.to_thread(_end, process)
    if message is not None:
        raise wire.error_from_wire(message["failed"])
    code = process.returncode
    raise EngineLoadError(
        f"The process ended while it loaded the model: {how_it_ended(code)}.", _last_words(log_path), _crash_name(code)
    )


def _spawn(log_path: Path, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process; return it and our end of the pipe."""
    ours, theirs = socket.socketpair()
    descriptor = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, FILE_MODE)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve.engine.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,  # a Ctrl-C in the terminal is the server's to handle
            env={**_ENVIRONMENT, **os.environ, **environment},
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(descriptor)
    return process, ours


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    try:
        (length,) = wire.HEADER.unpack(await reader.readexactly(wire.HEADER.size))
        return wire.decode_frame(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process; kill it when it takes too long."""
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _crash_name(code: int | None) -> str:
    crash = crash_signal(code)
    return "" if crash is None else crash.name


def _last_words(log_path: Path) -> str:
    lines = [line for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"Its last words: {one_line(lines[-1], 300)} (all of them: {log_path})." if lines else f"See {log_path}."
