"""Which models are loaded: one child process each, started on demand, replaced when memory is short.

Names are looked up by :mod:`serve.registry` and nowhere else. GGUF models are loaded once, whatever adapters requests
name; an MLX model is loaded anew for each adapter.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from localllm.adapters import AdapterStore
from localllm.errors import EngineBusyError, ServerError
from localllm.memory import KV_BYTES, USUAL_CONTEXT, MachineMemory, ModelShape, require_fit
from localllm.memory_safetensors import files_shape
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore
from localllm.settings import Settings
from localllm.snapshots import snapshot_directory
from serve.adapted import AdaptedEngine
from serve.engine.types import Engine, EngineSpec
from serve.registry import Registry, Served

_log = logging.getLogger(__name__)


class StartEngine(Protocol):
    """Starts the child process of a model; see :func:`serve.engine.process.start_engine`."""

    async def __call__(self, spec: EngineSpec, *, log_path: Path) -> Engine:
        """Load the model.

        Raises:
            EngineLoadError: The child could not.
        """


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        name: Its full name.
        n_ctx: Tokens that one request may use.
        memory: Bytes reckoned for it.
        requests: Requests under way.
        pid: Process id of its engine.
        expires: Seconds until it is unloaded if nobody uses it; None for never.
    """

    name: str
    n_ctx: int
    memory: int
    requests: int
    pid: int
    expires: float | None = None


@dataclass
class _Slot:
    """A model that was asked for: loaded, being loaded, or neither."""

    served: Served
    engine: Engine | None = None
    loading: asyncio.Task[Engine] | None = None
    memory: int = 0
    active: int = 0  # requests that it is answering
    waiting: int = 0  # requests that wait for it
    draining: bool = False  # it answers what it has begun, then makes room
    last_used: float = 0.0
    keep_alive: float | None = None  # seconds, as its last request asked; None for what the settings say

    @property
    def unused(self) -> bool:
        return not self.active and not self.waiting

    @property
    def name(self) -> str:
        return self.served.name


@dataclass(frozen=True)
class _Plan:
    """What a model is loaded with: file, tokens of context, bytes of memory, draft model, place for snapshots."""

    path: Path
    n_ctx: int
    memory: int
    draft: Path | None
    snapshots: Path | None


class Supervisor:
    """Keeps the engines.

    Args:
        store: Where models are.
        settings: ``ctx``, ``threads``, ``gpu_layers``, ``kv_type``, ``guess``, ``draft`` and
            ``snapshots`` are used.
        machine: Tells the memory of this machine; called at every load.
        start_engine: Starts a model's process.
        logs: Directory for the engines' log files.
        room_seconds: How long a model waits for room before its requests are refused.
    """

    def __init__(
        self,
        store: ModelStore,
        settings: Settings,
        machine: Callable[[], MachineMemory],
        start_engine: StartEngine,
        logs: Path,
        *,
        room_seconds: float = 60,
    ) -> None:
        self._store = store
        self._registry = Registry(store, AdapterStore(store.home))
        self._settings = settings
        self._machine = machine
        self._start_engine = start_engine
        self._logs = logs
        self._room_seconds = room_seconds
        self._changed = asyncio.Event()  # set, and replaced, whenever a request leaves or a model goes
        # The files' digests are part of the key: a model that was pulled or tuned anew is loaded anew.
        self._slots: dict[tuple[str, str], _Slot] = {}
        # One load at a time: two could each find room that only one of them can have.
        self._load_lock = asyncio.Lock()
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()  # unloads that nobody waits for

    @asynccontextmanager
    async def engine(
        self, name: str, keep_alive: float | None = None, adapters: Sequence[tuple[str, float]] = ()
    ) -> AsyncIterator[tuple[Served, Engine]]:
        """The engine of a model, loaded if need be, and kept while inside; it computes with the adapters.

        Args:
            name: The model's, with those of adapters after it, if any: ``model+adapter``.
            keep_alive: Seconds that it stays afterwards, until the next request says otherwise: 0 unloads it at once,
                infinity never. None for what the settings say.
            adapters: Names and scales of more adapters.

        A caller that is cancelled while it waits does not stop the load: others may wait for it, and the next request
        finds it done.

        Raises:
            ModelNotFoundError: There is no such model or adapter.
            RequestError: The adapters cannot be used so.
            InvalidModelError: Its file is damaged.
            MemoryFitError: It does not fit in this machine's memory.
            EngineBusyError: Models that were answering held the memory for too long.
            EngineLoadError: Its process could not load it.
        """
        served, request_adapters = await asyncio.to_thread(self._resolve, name, adapters)
        slot = self._slot(served.weights)
        slot.waiting += 1
        try:
            engine = await self._loaded(slot)
        finally:
            slot.waiting -= 1
        slot.active += 1
        slot.keep_alive = keep_alive
        try:
            if request_adapters:
                engine = AdaptedEngine(engine, request_adapters)
            yield served, engine
        finally:
            slot.active -= 1
            slot.last_used = time.monotonic()
            self._tell_change()
            if slot.keep_alive == 0 and slot.unused:
                # Not here: whoever leaves may be cancelled meanwhile, and need not wait for it.
                self._ending.add(task := asyncio.create_task(self._unload(slot)))
                task.add_done_callback(self._ending.discard)

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, sorted by name."""
        return sorted(
            (
                LoadedModel(
                    slot.name, engine.info.n_ctx, slot.memory, slot.active, engine.info.pid, self._expires(slot)
                )
                for slot in self._slots.values()
                if (engine := slot.engine) is not None and engine.alive
            ),
            key=lambda model: model.name,
        )

    async def unload_idle(self, seconds: float) -> None:
        """Unload the models that nobody has used for ``seconds``, or for as long as their last request asked."""
        now = time.monotonic()
        for slot in list(self._slots.values()):
            kept = seconds if slot.keep_alive is None else slot.keep_alive
            expired = slot.unused and slot.last_used + kept < now
            if expired and slot.engine is not None and slot.loading is None:
                _log.info("unloading %s: unused for %.0f s", slot.name, now - slot.last_used)
                await self._unload(slot)

    async def unload(self, name: str) -> Served:
        """Unload a model, if it is loaded: at once, or when the requests that it is answering have ended.

        Raises:
            ModelNotFoundError: There is no such model or adapter.
        """
        served = await asyncio.to_thread(self._registry.resolve, name)
        for slot in [slot for slot in self._slots.values() if slot.name == served.weights.name]:
            slot.keep_alive = 0
            if slot.unused and slot.engine is not None and slot.loading is None:
                _log.info("unloading %s: asked to", slot.name)
                await self._unload(slot)
        return served

    async def close(self) -> None:
        """End every engine; requests under way fail with EngineDiedError."""
        self._closed = True
        loading = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        engines = [slot.engine for slot in self._slots.values() if slot.engine is not None]
        self._slots.clear()
        await asyncio.gather(*(engine.close() for engine in engines), *self._ending)

    def _expires(self, slot: _Slot) -> float | None:
        # Of the settings, 0 keeps a model for ever; of a request, it does not.
        kept = (self._settings.keep_alive or math.inf) if slot.keep_alive is None else slot.keep_alive
        if kept == math.inf:
            return None
        return kept if slot.active else max(0.0, slot.last_used + kept - time.monotonic())

    def _resolve(
        self, name: str, adapters: Sequence[tuple[str, float]]
    ) -> tuple[Served, tuple[tuple[str, float], ...]]:
        served = self._registry.resolve(name, adapters)
        return served, self._registry.request_adapters(served)

    def _slot(self, served: Served) -> _Slot:
        if self._closed:
            raise ServerError("The server is stopping.", "Ask again in a moment.")
        files = [*served.manifest.files, *(file for adapter, _ in served.adapters for file in adapter.files)]
        key = (served.name, " ".join(file.sha256 for file in files))
        return self._slots.setdefault(key, _Slot(served))

    async def _loaded(self, slot: _Slot) -> Engine:
        while True:
            while slot.draining:
                await self._changed.wait()
            if slot.engine is not None and slot.engine.alive:
                return slot.engine
            if slot.loading is None:
                slot.loading = asyncio.create_task(self._load(slot), name=f"load {slot.name}")
                slot.loading.add_done_callback(lambda task: self._load_ended(slot, task))
            engine = await asyncio.shield(slot.loading)
            # It may have had to go again before this request's turn came.
            if slot.engine is engine and not slot.draining:
                return engine

    @staticmethod
    def _load_ended(slot: _Slot, task: asyncio.Task[Engine]) -> None:
        slot.loading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("%s could not be loaded: %s", slot.name, error)

    async def _load(self, slot: _Slot) -> Engine:
        async with self._load_lock:
            await self._bury_dead()
            machine = self._machine()
            manifest = slot.served.manifest
            plan = await asyncio.to_thread(self._check, manifest, machine)
            is_gguf = manifest.format == "gguf"
            await self._make_room(slot, plan.memory, machine.budget)
            spec = EngineSpec(
                # A GGUF model is its file, the others are the directory that config.json is in.
                path=str(plan.path if is_gguf else plan.path.parent),
                engine="llama" if is_gguf else "mlx",
                adapter=self._registry.spec_adapter(slot.served),
                n_ctx=plan.n_ctx,
                n_threads=self._settings.threads,
                n_gpu_layers=self._settings.gpu_layers,
                kv_type=self._settings.kv_type,
                n_guess=self._settings.guess,
                draft_path=str(plan.draft or ""),
                snapshot_dir=str(plan.snapshots or ""),
                snapshot_bytes=int(self._settings.snapshots * 1e9),
                memory_bytes=machine.budget,
            )
            log_path = self._logs / f"engine-{slot.name.replace(':', '-')}.log"
            began = time.monotonic()
            engine = await self._start_engine(spec, log_path=log_path)
            slot.engine, slot.memory, slot.last_used = engine, plan.memory, time.monotonic()
            _log.info(
                "loaded %s in %.1f s: n_ctx %d, pid %d",
                slot.name,
                slot.last_used - began,
                engine.info.n_ctx,
                engine.info.pid,
            )
            return engine

    def _check(self, manifest: Manifest, machine: MachineMemory) -> _Plan:
        """What to load and how much of it fits; reads the headers of its files, so it runs in a thread."""
        paths = self._store.paths(manifest)
        shape = files_shape(paths, gpu_layers=self._settings.gpu_layers)
        draft, draft_memory = self._draft(manifest, shape)
        machine = replace(machine, budget=machine.budget - draft_memory)
        fit = require_fit(shape, machine, self._settings.ctx, kv_bytes=KV_BYTES[self._settings.kv_type])
        keeps = self._settings.snapshots > 0 and manifest.format == "gguf"
        snapshots = snapshot_directory(self._store.home, manifest.files[0].sha256) if keeps else None
        return _Plan(paths[0], fit.n_ctx, fit.need.total + draft_memory, draft, snapshots)

    def _draft(self, manifest: Manifest, shape: ModelShape) -> tuple[Path | None, int]:
        """The draft model's file and the memory that it takes; none for itself, and for a model it cannot help."""
        if not self._settings.draft or manifest.format != "gguf":
            return None, 0
        draft = self._store.resolve(self._settings.draft)
        path = self._store.file(draft)
        draft_shape = files_shape([path], gpu_layers=self._settings.gpu_layers)
        if draft.format != "gguf" or draft_shape.weights >= shape.weights:
            return None, 0
        # Its context is as long as the model's, which is not known yet: no longer than this.
        return path, draft_shape.need(self._settings.ctx or USUAL_CONTEXT).total

    async def _bury_dead(self) -> None:
        """Forget engines whose process has ended, so that their memory counts as free."""
        for slot in list(self._slots.values()):
            if slot.engine is not None and not slot.engine.alive:
                _log.warning("the process %d of %s has ended", slot.engine.info.pid, slot.name)
                await self._unload(slot)

    async def _make_room(self, wanted: _Slot, memory: int, budget: int) -> None:
        """Unload models until ``memory`` bytes fit in ``budget``: idle ones first, the least recently used first.

        Where all are busy, one takes no new requests, finishes those it has, and then goes.

        Raises:
            EngineBusyError: They did not finish in time.
        """
        try:
            async with asyncio.timeout(self._room_seconds):
                while sum(slot.memory for slot in self._slots.values()) + memory > budget:
                    loaded = [slot for slot in self._slots.values() if slot.engine is not None]
                    victim = min(loaded, key=lambda slot: (slot.active > 0, slot.waiting > 0, slot.last_used))
                    await self._drain(victim)
                    _log.info("unloading %s to make room for %s", victim.name, wanted.name)
                    await asyncio.shield(self._unload(victim))
        except TimeoutError:
            raise EngineBusyError(
                f"{wanted.name} does not fit in memory beside the models that are answering now.",
                "Ask again when they have finished.",
            ) from None

    async def _drain(self, slot: _Slot) -> None:
        """Wait until ``slot`` answers nobody; it takes no new requests meanwhile, nor after, until it is unloaded."""
        slot.draining = True
        try:
            while slot.active:
                await self._changed.wait()
        except BaseException:
            slot.draining = False
            self._tell_change()
            raise

    async def _unload(self, slot: _Slot) -> None:
        engine, slot.engine, slot.memory = slot.engine, None, 0
        if engine is not None:
            await engine.close()
        slot.draining = False
        if not slot.waiting and not slot.active and slot.loading is None:
            self._slots = {key: kept for key, kept in self._slots.items() if kept is not slot}
        self._tell_change()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
