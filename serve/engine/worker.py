"""An engine's process: one model, one engine thread.

Started by :mod:`serve.engine.process` as ``python -P -m serve.engine.worker FD`` with one end of a socket pair and
the spec as its first frame. The main thread reads requests, renders templates and tokenizes; the engine thread owns
llama.cpp. When the other end closes, however the server ended, this process ends too.
"""

import contextlib
import logging
import os
import queue
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from localllm.errors import LocalLLMError, RequestError
from serve.engine import wire
from serve.engine.model import Model, Pooling
from serve.engine.outbox import Outbox
from serve.engine.request import Job, JobEvent
from serve.engine.types import EngineSpec, GenerateRequest

log = logging.getLogger("serve.engine")

Task = Callable[[], None]

# What the other end waits for, and a little less: it kills this process then.
_STOP_SECONDS = 2.5


class Channel:
    """The engine's end of the pipe. Frames may be sent from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = sock.makefile("rb")
        self._lock = threading.Lock()

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None once the other end has closed."""
        header = self._reader.read(wire.HEADER.size)
        if len(header) < wire.HEADER.size:
            return None
        (length,) = wire.HEADER.unpack(header)
        body = self._reader.read(length)
        return wire.decode_frame(body) if len(body) == length else None

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; once the other end has closed nobody wants it, and :meth:`receive` tells of that."""
        frame = wire.encode_frame(message)
        # The engine's thread must outlive the pipe: what it has read is still to be kept.
        with self._lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(frame)

    def send_event(self, job_id: int, event: wire.Event) -> None:
        """Send one event outside a step."""
        self.send({"events": [wire.event_to_wire(job_id, event)]})


class EngineThread:
    """Runs tasks and steps of the scheduler, in the one thread that may touch llama.cpp's contexts.

    Args:
        model: Whose.
        channel: Where events go.
        rest_seconds: Without work for so long, the model gives back what it only keeps for the next request.
    """

    def __init__(self, model: Model, channel: Channel, rest_seconds: float = 5.0) -> None:
        self._model = model
        self._rest_seconds = rest_seconds
        self._channel = channel
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._outbox = Outbox(self._send)

    def post(self, task: Task | None) -> None:
        """Run ``task`` before the next step; None ends the thread."""
        self._inbox.put(task)

    def run(self) -> None:
        """Until None is posted. An error that is no LocalLLMError is a bug: it ends the process."""
        rested = False
        while True:
            idle = self._idle
            try:
                task = self._inbox.get(block=idle, timeout=None if rested else self._rest_seconds)
            except queue.Empty:
                if idle:
                    self._model.rest()
                    rested = True
                    continue
            else:
                rested = False
                if task is None:
                    return
                task()
                continue
            self._step()

    @property
    def _idle(self) -> bool:
        scheduler, pooling = self._model.scheduler, self._model.pooling
        return (scheduler is None or scheduler.idle) and (pooling is None or pooling.queue.idle)

    def _step(self) -> None:
        """A step of the scheduler, then a slice of embeddings or scores, where there are any to make."""
        scheduler, pooling = self._model.scheduler, self._model.pooling
        seconds: float | None = None
        if scheduler is not None and not scheduler.idle:
            began = time.perf_counter()
            self._outbox.put(scheduler.step())
            seconds = time.perf_counter() - began
            scheduler.meter.step(seconds)
            if scheduler.meter.is_due(idle=scheduler.idle):
                self._channel.send({"events": [], "steps": scheduler.meter.report(*scheduler.kv).to_wire()})
        if pooling is not None and not pooling.queue.idle:
            for job_id, event in pooling.queue.step(seconds):
                self._channel.send_event(job_id, event)

    def _send(self, events: Sequence[JobEvent]) -> None:
        self._channel.send({"events": [wire.event_to_wire(job_id, event) for job_id, event in events]})


class Worker:
    """Reads requests and hands them to the engine thread."""

    def __init__(self, model: Model, channel: Channel, engine: EngineThread) -> None:
        self._model = model
        self._channel = channel
        self._engine = engine

    def serve(self) -> None:
        """Until the other end closes or says so."""
        while (message := self._channel.receive()) is not None:
            match message:
                case {"op": "generate", "id": job_id, "request": request}:
                    self._guard(job_id, partial(self._generate, job_id, wire.request_from_wire(request)))
                case {"op": "embed", "id": job_id, "inputs": inputs}:
                    self._guard(job_id, partial(self._embed, job_id, inputs))
                case {"op": "rerank", "id": job_id, "query": query, "documents": documents}:
                    self._guard(job_id, partial(self._rerank, job_id, query, documents))
                case {"op": "prompt_tokens", "id": job_id, "request": request}:
                    self._guard(job_id, partial(self._prompt_tokens, job_id, wire.request_from_wire(request)))
                case {"op": "tokenize", "id": job_id, "text": text, "options": options}:
                    self._guard(job_id, partial(self._tokenize, job_id, text, options))
                case {"op": "detokenize", "id": job_id, "tokens": tokens}:
                    self._guard(job_id, partial(self._detokenize, job_id, tokens))
                case {"op": "cancel", "id": job_id}:
                    self._engine.post(partial(self._cancel, job_id))
                case {"op": "close"}:
                    return
                case _:
                    raise ValueError(f"unknown message {message.get('op')!r:.20}")  # not the text in it: this is logged

    def _guard(self, job_id: int, work: Task) -> None:
        """Run ``work``; an error that a person can cause becomes the job's last event."""
        try:
            work()
        except LocalLLMError as error:
            self._channel.send_event(job_id, error)

    def _generate(self, job_id: int, request: GenerateRequest) -> None:
        scheduler = self._model.scheduler
        if scheduler is None:
            raise RequestError(
                "This model makes embeddings or ranks documents; it cannot answer.",
                "Use it with /v1/embeddings or /v1/rerank.",
                "model",
            )
        prompt = self._model.tokenize(request)
        if not prompt:
            raise RequestError("The prompt is empty.", param="prompt")
        job = Job(
            id=job_id,
            prompt=tuple(prompt),
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop=request.stop,
            n_logprobs=request.n_logprobs,
            prompt_logprobs=request.prompt_logprobs,
            ignore_eos=request.ignore_eos,
            client=request.client,
            shown=self._model.shown(request.show_special),
            matcher=self._model.matcher(request),
            adapters=self._model.adapters(request),
            priority=request.priority,
            deadline=request.deadline,
        )
        self._engine.post(partial(self._guard, job_id, partial(scheduler.submit, job)))

    def _tokenize(self, job_id: int, text: str, options: dict[str, bool]) -> None:
        self._channel.send_event(job_id, wire.Reply(self._model.tokenize_text(text, **options)))

    def _detokenize(self, job_id: int, tokens: list[int]) -> None:
        self._channel.send_event(job_id, wire.Reply(self._model.detokenize(tokens)))

    def _prompt_tokens(self, job_id: int, request: GenerateRequest) -> None:
        self._channel.send_event(job_id, wire.Reply([int(token) for token in self._model.tokenize(request)]))

    def _embed(self, job_id: int, inputs: list[str | list[int]]) -> None:
        pooling = self._pooling()
        self._engine.post(partial(pooling.queue.submit, pooling.embed_job(job_id, inputs)))

    def _rerank(self, job_id: int, query: str, documents: list[str]) -> None:
        pooling = self._pooling()
        self._engine.post(partial(pooling.queue.submit, pooling.rerank_job(job_id, query, documents)))

    def _pooling(self) -> Pooling:
        if self._model.pooling is None:
            raise RequestError(
                "This model is served by MLX, which makes no embeddings here.", "Use a GGUF model for them.", "model"
            )
        return self._model.pooling

    def _cancel(self, job_id: int) -> None:
        """Wherever it is; ids are never given twice."""
        if self._model.scheduler is not None:
            self._model.scheduler.cancel(job_id)
        if self._model.pooling is not None:
            self._model.pooling.queue.cancel(job_id)


def main() -> int:
    """Load the model, say so, serve until the pipe closes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    first = channel.receive()
    if first is None:
        return 0
    spec = EngineSpec(**first["load"])
    try:
        model = _load(spec)
    except LocalLLMError as error:
        channel.send({"failed": wire.error_to_wire(error)})
        return 1
    channel.send({"ready": asdict(model.info)})
    engine = EngineThread(model, channel)
    thread = threading.Thread(target=_run_or_die, args=(engine.run,), name="engine")
    thread.start()
    Worker(model, channel, engine).serve()
    if spec.snapshot_dir:
        engine.post(model.stop)
        engine.post(None)
        thread.join(_STOP_SECONDS)
    # The engine thread may be deep in a long batch whose result nobody waits for.
    os._exit(0)


def _load(spec: EngineSpec) -> Model:
    # Deferred: a process imports only the library that runs its model (llama_cpp 0.2 s, mlx-lm 2 s).
    if spec.engine == "mlx":
        from serve.engine.mlx_model import MLXModel

        return MLXModel(spec)
    from serve.engine.loaded import LoadedModel

    model = LoadedModel(spec)
    # What llama.cpp tells while it loads may explain a failure; later it tells of every change of adapters, for ever.
    logging.getLogger("llama-cpp-python").setLevel(logging.WARNING)
    return model


def _run_or_die(run: Task) -> None:
    """A dead engine thread must not leave a living process that never answers."""
    try:
        run()
    except BaseException:
        log.exception("the engine thread failed")
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
