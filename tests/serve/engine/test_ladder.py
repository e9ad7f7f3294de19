"""Engines on machines of other sorts: they go down the ladder by themselves, and nothing that was asked is lost."""

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace

import pytest

from localllm.errors import EngineDiedError, EngineLoadError
from localllm.native.llama_verdict import Attempt, Verdict, known_verdict
from serve.engine import ladder
from serve.engine.ladder import LadderStarter
from serve.engine.types import Delta, EngineSpec, Finished, GenerateRequest, SamplingParams, Started
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.machines import needs_compiler, processor

# What the probe found before the machine moved, or of a batch too short to see it.
FULL = Verdict((Attempt("full"),), ("AVX", "AVX2"))
UNPACKED = Verdict((Attempt("full", "it crashed"), Attempt("unpacked")), ("AVX", "AVX2"))
LONG = "the sea " * 60  # more tokens than the probe's batch


def ask(prompt, n=8):
    return GenerateRequest(prompt=prompt, max_tokens=n, sampling=SamplingParams(temperature=0))


async def events_of(engine, request):
    async with aclosing(engine.generate(request)) as events:
        return [event async for event in events]


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


@pytest.fixture
def spec(tmp_path):
    return EngineSpec(path=str(write_tiny_gguf(tmp_path / "tiny.gguf", n_ctx_train=1024)), n_ctx=1024, n_threads=1)


@pytest.fixture
async def start(home, spec, tmp_path):
    engines = []

    async def started(verdict=None):
        starter = LadderStarter(home) if verdict is None else LadderStarter(home, prove=lambda home: verdict)
        engines.append(await starter(spec, log_path=tmp_path / "engine.log"))
        return engines[-1]

    yield started
    for engine in engines:
        await engine.close()


@needs_compiler
async def test_the_first_use_probes_and_the_model_answers(odd_llama, home, start):
    odd_llama("amx")
    engine = await start()
    assert text_of(await events_of(engine, ask(LONG)))
    verdict = known_verdict(home)
    assert (verdict.way.name, verdict.at_work) == ("unpacked", False)


@needs_compiler
async def test_an_engine_that_dies_at_its_first_work_is_started_lower_and_answers(odd_llama, home, start):
    odd_llama("long")
    engine = await start(FULL)
    first = engine.info.pid
    events = await events_of(engine, ask(LONG))
    assert [type(event) for event in events].count(Started) == 1
    assert isinstance(events[-1], Finished)
    assert engine.info.pid != first
    verdict = known_verdict(home)
    assert (verdict.way.name, verdict.at_work) == ("unpacked", True)
    assert "illegal instruction (SIGILL)" in verdict.failure


@needs_compiler
async def test_all_that_was_asked_at_once_is_answered_by_one_new_process(odd_llama, start, spec):
    odd_llama("long")
    engine = await start(FULL)
    asked = [ask(f"{number} {LONG}") for number in range(6)]
    answers = await asyncio.gather(*(events_of(engine, request) for request in asked), engine.embed(["a " * 200]))
    assert all(isinstance(events[-1], Finished) for events in answers[:-1])
    assert len(answers[-1].vectors) == 1
    assert engine.alive


@needs_compiler
async def test_a_dead_engine_that_can_go_down_counts_as_alive(odd_llama, start):
    odd_llama("long")
    engine = await start(FULL)
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0):
            await events_of(engine, ask(LONG))
    for _ in range(100):  # it may have been cancelled before it began: then it lives
        await asyncio.sleep(0.01)
        assert engine.alive
    assert isinstance((await events_of(engine, ask(LONG)))[-1], Finished)


@needs_compiler
async def test_text_that_was_told_is_not_told_twice(odd_llama, home, tmp_path):
    odd_llama("long")
    path = write_tiny_gguf(tmp_path / "slow.gguf", n_ctx_train=1024, n_embd=256, n_ff=1024, n_layer=6)
    starter = LadderStarter(home, prove=lambda home: FULL)
    engine = await starter(EngineSpec(path=str(path), n_ctx=1024, n_threads=1), log_path=tmp_path / "engine.log")
    has_text = asyncio.Event()

    async def tell():
        async with aclosing(engine.generate(replace(ask("a", n=800), ignore_eos=True))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    has_text.set()

    writing = asyncio.create_task(tell())
    await has_text.wait()
    os.kill(engine.info.pid, signal.SIGILL)
    other = await events_of(engine, ask(LONG))
    with pytest.raises(EngineDiedError, match="SIGILL"):
        await writing
    assert isinstance(other[-1], Finished), "it had got nothing yet"
    await engine.close()


@needs_compiler
@pytest.mark.parametrize(("sort", "where"), [("foreign", "at work"), ("unloadable", "while it loads")])
async def test_where_nothing_helps_the_message_names_signal_reason_and_command(
    odd_llama, home, start, tmp_path, monkeypatch, sort, where
):
    odd_llama(sort)
    monkeypatch.setattr(ladder, "read_processor", lambda: processor("no-avx", tmp_path))
    with pytest.raises((EngineDiedError, EngineLoadError)) as caught:
        await events_of(await start(FULL), ask("a"))
    assert "an illegal instruction (SIGILL)" in caught.value.message
    assert "with AVX, AVX2, which this one lacks" in caught.value.hint
    assert "`localllm doctor --mend`" in caught.value.hint
    assert known_verdict(home) is None, "what helps nothing is not kept"


@needs_compiler
async def test_a_machine_on_which_the_probe_found_no_way_is_told_at_once(odd_llama, start):
    odd_llama("foreign")
    with pytest.raises(EngineLoadError, match=r"does not work on this machine: an illegal instruction") as caught:
        await start()
    assert "localllm doctor --mend" in caught.value.hint


@needs_compiler
async def test_a_crash_that_a_lower_way_does_not_mend_is_the_models(odd_llama, start):
    odd_llama("foreign")
    engine = await start(UNPACKED)
    with pytest.raises(EngineDiedError, match="SIGILL") as caught:
        await events_of(engine, ask("a"))
    assert "as a probe has shown" in caught.value.hint
    assert not engine.alive


async def test_a_killed_engine_is_not_started_lower(start, monkeypatch):
    monkeypatch.delenv("LOCALLLM_LLAMA_WAY", raising=False)
    engine = await start(FULL)
    os.kill(engine.info.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="signal 9"):
        await events_of(engine, ask("a"))
    assert not engine.alive


async def test_a_model_that_is_none_fails_as_ever(home, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCALLLM_LLAMA_WAY", raising=False)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    starter = LadderStarter(home, prove=lambda home: FULL)
    with pytest.raises(EngineLoadError, match="cannot load this model"):
        await starter(EngineSpec(path=str(tmp_path / "bad.gguf")), log_path=tmp_path / "engine.log")
