"""Prefixes that survive the engine's process."""

import os
import signal
from dataclasses import replace

import pytest

from serve.engine.process import start_engine
from serve.engine.types import Delta, EngineSpec, GenerateRequest, SamplingParams, Started
from tests.fakes.gguf_files import write_tiny_gguf

GREEDY = SamplingParams(temperature=0)


async def ask(spec, request, log_path, *, kill=False):
    """One answer of a process of its own: cached tokens and text."""
    engine = await start_engine(spec, log_path=log_path)
    text, cached = "", None
    async for event in engine.generate(request):
        if isinstance(event, Started):
            cached = event.n_cached
        elif isinstance(event, Delta):
            text += event.text
    if kill:
        os.kill(engine.info.pid, signal.SIGKILL)
    await engine.close()
    return cached, text


async def test_a_new_process_finds_what_the_last_one_read(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_ctx_train=1024)
    spec = EngineSpec(
        str(path), n_ctx=1024, n_threads=1, snapshot_dir=str(tmp_path / "snapshots" / "x"), snapshot_bytes=10**8
    )
    prompt = tuple(3 + 7 * n % 250 for n in range(600))
    request = GenerateRequest(prompt=prompt, sampling=GREEDY, max_tokens=12, ignore_eos=True)
    log_path = tmp_path / "log"
    _, wanted = await ask(spec, request, log_path, kill=True)
    cold = await ask(spec, request, log_path)
    assert cold == (0, wanted), "one that was killed keeps nothing"
    assert await ask(spec, request, log_path) == (599, wanted)
    plain_attention = replace(spec, flash_attn=False)
    assert (await ask(plain_attention, request, log_path))[0] == 0
    assert (await ask(EngineSpec(str(path), n_ctx=1024, n_threads=1), request, log_path))[0] == 0


@pytest.mark.model
async def test_the_same_text_from_the_disk(starter_path, tmp_path):
    spec = EngineSpec(
        str(starter_path), n_ctx=2048, snapshot_dir=str(tmp_path / "snapshots" / "x"), snapshot_bytes=10**9
    )
    text = "The lighthouse at the end of the pier was built in 1871 and repaired twice. " * 20
    messages = ({"role": "user", "content": f"{text}\n\nWhen was the lighthouse built?"},)
    request = GenerateRequest(messages=messages, sampling=GREEDY, max_tokens=24)
    cached, wanted = await ask(spec, request, tmp_path / "log")
    assert cached == 0
    cached, again = await ask(spec, request, tmp_path / "log")
    assert cached > 300
    assert again == wanted
