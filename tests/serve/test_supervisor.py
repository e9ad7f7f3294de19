"""Which models are loaded, when, and in place of which."""

import asyncio
import logging
import math
import shutil
from contextlib import aclosing

import pytest

from localllm.adapters import AdapterStore
from localllm.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineLoadError,
    InvalidModelError,
    MemoryFitError,
    ModelNotFoundError,
    RequestError,
    ServerError,
)
from localllm.gguf_header import read_gguf_header
from localllm.memory import MachineMemory, fit
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from localllm.settings import Settings
from serve.engine.types import GenerateRequest
from serve.supervisor import Supervisor
from tests.fakes.engine import EngineStarter, Script, add_model
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.mlx_models import N_CTX, make_adapter, make_model

PLENTY = MachineMemory(64 << 30, 64 << 30, 48 << 30)


@pytest.fixture
def starter():
    return EngineStarter()


@pytest.fixture
async def supervise(home, starter):
    """Makes a supervisor over the models ``a``, ``b`` and ``c``, with room for ``room`` of them (None: for all)."""
    made = []

    def make(room: float | None = None, room_seconds: float = 60, **settings) -> Supervisor:
        for name in ("a", "b", "c"):
            add_model(home, name)
        machine = PLENTY
        if room is not None:
            header = read_gguf_header(home.models / "a" / "f16" / "model.gguf")
            budget = int(fit(header, PLENTY).need.total * room)
            machine = MachineMemory(64 << 30, 64 << 30, budget)
        supervisor = Supervisor(
            ModelStore(home), Settings(**settings), lambda: machine, starter, logs=home.logs, room_seconds=room_seconds
        )
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        await supervisor.close()
    assert all(not engine.alive for engine in starter.started)


def names(supervisor):
    return [model.name for model in supervisor.loaded()]


async def all_wait(supervisor, number):
    """Until ``number`` requests wait for a model; looking a name up takes a thread, and so its time."""
    async with asyncio.timeout(30):
        while sum(slot.waiting for slot in supervisor._slots.values()) < number:  # noqa: ASYNC110  the supervisor tells nobody
            await asyncio.sleep(0.01)


async def use(supervisor, name):
    async with (
        supervisor.engine(name) as (_, engine),
        aclosing(engine.generate(GenerateRequest(prompt="x"))) as events,
    ):
        return [event async for event in events]


async def test_a_model_is_loaded_once_and_kept(supervise, starter, home):
    supervisor = supervise(ctx=128, threads=3, gpu_layers=0)
    async with supervisor.engine("a") as (served, engine):
        assert supervisor.loaded()[0].requests == 1
    async with supervisor.engine("a:f16") as (_, again):
        assert again is engine
    assert served.name == "a:f16"
    spec = starter.started[0].spec
    assert spec.path == str(home.models / "a" / "f16" / "model.gguf")
    assert (spec.n_ctx, spec.n_threads, spec.n_gpu_layers) == (128, 3, 0)
    assert starter.log_paths == [home.logs / "engine-a-f16.log"]
    assert supervisor.loaded()[0].requests == 0


async def test_two_at_once_load_once(supervise, starter):
    supervisor = supervise()
    starter.gate.clear()
    tasks = [asyncio.create_task(use(supervisor, "a")) for _ in range(5)]
    await all_wait(supervisor, 5)
    starter.gate.set()
    assert all(await asyncio.gather(*tasks))
    assert starter.attempts == 1


async def test_a_cancelled_caller_leaves_the_load_to_the_others(supervise, starter):
    supervisor = supervise()
    starter.gate.clear()
    first, second = (asyncio.create_task(use(supervisor, "a")) for _ in range(2))
    await all_wait(supervisor, 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    starter.gate.set()
    assert await second
    assert (starter.attempts, supervisor.loaded()[0].requests) == (1, 0)


async def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_by_the_next(supervise, starter, caplog):
    supervisor = supervise()
    starter.errors = [EngineLoadError("It died.", "last log line"), EngineLoadError("It died again.")]
    starter.gate.clear()
    tasks = [asyncio.create_task(use(supervisor, "a")) for _ in range(3)]
    await all_wait(supervisor, 3)
    starter.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineLoadError] * 3
    assert starter.attempts == 1
    assert "a:f16 could not be loaded: It died. last log line" in caplog.text
    with pytest.raises(EngineLoadError, match="again"):
        await use(supervisor, "a")
    assert await use(supervisor, "a")
    assert starter.attempts == 3


async def test_a_dead_engine_is_replaced_by_the_next_request(supervise, starter, caplog):
    caplog.set_level(logging.INFO)
    supervisor = supervise()
    starter.scripts[:] = [Script(hold=1), Script()]
    reading = asyncio.create_task(use(supervisor, "a"))
    async with asyncio.timeout(5):
        while not (starter.started and starter.started[0].active):  # noqa: ASYNC110  sets no event
            await asyncio.sleep(0.01)
    starter.started[0].die()
    with pytest.raises(EngineDiedError):
        await reading
    assert names(supervisor) == []
    assert await use(supervisor, "a")
    assert starter.started[0].closed
    assert "the process 1000 of a:f16 has ended" in caplog.text
    assert names(supervisor) == ["a:f16"]


async def test_the_least_recently_used_model_makes_room(supervise, starter):
    supervisor = supervise(room=2.5)
    for name in ("a", "b", "a"):
        await use(supervisor, name)
    assert names(supervisor) == ["a:f16", "b:f16"]
    await use(supervisor, "c")
    assert names(supervisor) == ["a:f16", "c:f16"]
    assert [engine.closed for engine in starter.started] == [False, True, False]


async def test_a_dead_model_is_room(supervise, starter):
    supervisor = supervise(room=1.5)
    await use(supervisor, "a")
    starter.started[0].die()
    await use(supervisor, "b")
    assert names(supervisor) == ["b:f16"]


async def test_busy_models_are_not_unloaded(supervise, starter):
    supervisor = supervise(room=1.5, room_seconds=0.2)
    async with supervisor.engine("a") as (_, engine):
        with pytest.raises(EngineBusyError, match="b:f16"):
            await use(supervisor, "b")
        assert engine.alive
    assert await use(supervisor, "b")
    assert names(supervisor) == ["b:f16"]


async def test_two_models_asked_for_at_once_do_not_both_take_the_same_room(supervise, starter):
    supervisor = supervise(room=1.5)
    answers = await asyncio.gather(use(supervisor, "a"), use(supervisor, "b"))
    assert all(answers)
    assert len(names(supervisor)) == 1


async def test_a_busy_model_finishes_what_it_has_and_makes_room(supervise, starter):
    supervisor = supervise(room=1.5)
    async with supervisor.engine("a") as (_, engine):
        waiting = asyncio.create_task(use(supervisor, "b"))
        again = None
        while again is None or not starter.started:
            await asyncio.sleep(0.01)
            again = again or asyncio.create_task(use(supervisor, "a"))
        await asyncio.sleep(0.05)
        assert engine.alive
        assert not waiting.done()
        assert not again.done(), "the model that makes room takes no new requests"
    assert await waiting
    assert await again, "it is loaded once more, after the other"
    assert engine.closed


async def test_three_models_in_the_room_of_two(supervise, starter):
    supervisor = supervise(room=2.5)

    async def one(number):
        answer = await use(supervisor, "abc"[number % 3])
        assert len(names(supervisor)) <= 2
        return answer

    answers = await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(30))), 30)
    assert all(answers)


async def test_an_unused_model_is_unloaded(supervise, starter):
    supervisor = supervise()
    await use(supervisor, "a")
    async with supervisor.engine("b"):
        await supervisor.unload_idle(3600)
        assert names(supervisor) == ["a:f16", "b:f16"]
        await supervisor.unload_idle(0)
        assert names(supervisor) == ["b:f16"]
    assert await use(supervisor, "a")


async def test_a_model_stays_as_long_as_its_last_request_asked(supervise, starter):
    supervisor = supervise()
    for name, keep_alive in (("a", math.inf), ("b", 1000.0), ("c", None)):
        async with supervisor.engine(name, keep_alive):
            pass
    assert [model.expires is None for model in supervisor.loaded()][:2] == [True, False]
    await supervisor.unload_idle(0)
    assert names(supervisor) == ["a:f16", "b:f16"]
    await use(supervisor, "a")
    await supervisor.unload_idle(0)
    assert names(supervisor) == ["b:f16"]


async def test_a_model_that_is_unloaded_answers_to_the_end(supervise, starter):
    supervisor = supervise()
    async with supervisor.engine("a") as (_, engine):
        await supervisor.unload("a")
        assert engine.alive
    while names(supervisor):  # noqa: ASYNC110  nobody waits for an unload
        await asyncio.sleep(0)
    await supervisor.unload("b")
    assert starter.attempts == 1, "what is not loaded is not loaded for it"
    with pytest.raises(ModelNotFoundError):
        await supervisor.unload("zzz")


async def test_a_model_that_never_fits_is_refused_before_anything_starts(supervise, starter):
    supervisor = supervise(room=0.5)
    with pytest.raises(MemoryFitError):
        await use(supervisor, "a")
    assert starter.attempts == 0


async def test_a_context_that_does_not_fit_is_refused(supervise, starter):
    supervisor = supervise(room=1.5, ctx=10_000_000)
    with pytest.raises(MemoryFitError, match="10000000 tokens"):
        await use(supervisor, "a")
    assert starter.attempts == 0


async def test_a_damaged_file_is_refused_before_anything_starts(supervise, starter, home):
    supervisor = supervise()
    (home.models / "a" / "f16" / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(InvalidModelError):
        await use(supervisor, "a")
    (home.models / "a" / "f16" / "model.gguf").unlink()
    with pytest.raises(InvalidModelError):
        await use(supervisor, "a")
    assert starter.attempts == 0


async def test_a_directory_of_safetensors_is_loaded_by_mlx(supervise, starter, home, tmp_path):
    supervisor = supervise(threads=1)
    manifest = pull(str(make_model(tmp_path / "tuned")), ModelStore(home))
    assert manifest.format == "hf"
    await use(supervisor, "tuned")
    spec = starter.started[0].spec
    assert (spec.engine, spec.path, spec.n_ctx) == ("mlx", str(home.models / "tuned" / manifest.variant), N_CTX)
    await use(supervisor, "a")
    assert starter.started[1].spec.engine == "llama"


async def test_an_mlx_model_is_loaded_anew_for_each_adapter(supervise, starter, home, tmp_path):
    supervisor = supervise()
    manifest = pull(str(make_model(tmp_path / "tuned")), ModelStore(home))
    adapters = AdapterStore(home)
    for seed, name in enumerate(("x", "y")):
        adapters.install(make_adapter(tmp_path / name, seed=seed), base="tuned")
    for name in ("tuned", "tuned+x", "tuned+y", "tuned+x"):
        await use(supervisor, name)
    assert [engine.spec.adapter for engine in starter.started] == ["", *(str(home.adapters / n) for n in "xy")]
    assert names(supervisor) == [f"{manifest.model_name}{end}" for end in ("", "+x", "+y")]
    adapters.remove(adapters.resolve("x"))
    adapters.install(make_adapter(tmp_path / "new", seed=7), name="x", base="tuned")
    await use(supervisor, "tuned+x")
    assert len(starter.started) == 4, "another adapter of the same name"
    with pytest.raises(RequestError, match="one adapter"):
        await use(supervisor, "tuned+x+y")
    async with supervisor.engine("tuned", adapters=[("x", 0.0)]) as (served, _):
        assert served.name == str(manifest.model_name)
    with pytest.raises(RequestError, match="scale 1"):
        async with supervisor.engine("tuned", adapters=[("x", 0.5)]):
            pass


async def test_a_model_tuned_anew_is_loaded_anew(supervise, starter, home, tmp_path):
    supervisor = supervise()
    store = ModelStore(home)
    for seed in (0, 1):  # other weights below the same config.json
        manifest = pull(str(make_model(tmp_path / str(seed) / "tuned", seed=seed)), store)
        await use(supervisor, "tuned")
        store.remove(manifest)
    assert starter.attempts == 2


@pytest.mark.parametrize("name", ["nothing", "../a", "/tmp", "a/f16", "", "a:f16:x", "a\0"])
async def test_only_names_of_the_store(supervise, starter, name):
    supervisor = supervise()
    with pytest.raises(ModelNotFoundError):
        await use(supervisor, name)
    assert starter.attempts == 0


async def test_a_model_that_was_pulled_anew_is_loaded_anew(supervise, starter, home):
    supervisor = supervise()
    await use(supervisor, "a")
    for path in sorted((home.models / "a").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (home.models / "a").rmdir()
    add_model(home, "a", sha256="1" * 64)
    await use(supervisor, "a")
    assert starter.attempts == 2


async def test_close_ends_loads_and_engines(supervise, starter):
    supervisor = supervise()
    await use(supervisor, "a")
    starter.gate.clear()
    waiting = asyncio.create_task(use(supervisor, "b"))
    await asyncio.sleep(0.2)
    await supervisor.close()
    outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert isinstance(outcome, asyncio.CancelledError | ServerError)
    assert starter.started[0].closed
    with pytest.raises(ServerError, match="stopping"):
        await use(supervisor, "a")


async def test_a_draft_model_is_loaded_with_larger_ones_and_counted(supervise, starter, home):
    add_model(home, "big")
    write_tiny_gguf(home.models / "big" / "f16" / "model.gguf", n_layer=6)
    plain = supervise()
    for name in ("a", "b", "c"):
        shutil.rmtree(home.models / name)
    drafting = supervise(draft="a", ctx=256)
    await use(plain, "big")
    await use(drafting, "big")
    await use(drafting, "a")
    assert [engine.spec.draft_path for engine in starter.started] == [
        "",
        str(home.models / "a" / "f16" / "model.gguf"),
        "",  # it cannot help itself
    ]
    memory = {model.name: model.memory for model in drafting.loaded()}
    header = read_gguf_header(home.models / "big" / "f16" / "model.gguf")
    assert memory["big:f16"] == fit(header, PLENTY, 256).need.total + memory["a:f16"]


async def test_a_draft_model_that_is_not_there(supervise):
    with pytest.raises(ModelNotFoundError):
        await use(supervise(draft="nowhere"), "a")
