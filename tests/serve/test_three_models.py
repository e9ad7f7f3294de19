"""Three models, memory for two, requests for all of them at once: real engines on tiny models."""

import asyncio

import openai
import psutil
import pytest

from localllm.gguf_header import read_gguf_header
from localllm.memory import memory_need
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.serving import serving

N_CTX = 256


@pytest.fixture
def budget_gb(home, tmp_path):
    """Pulls ``one``, ``two`` and ``three``; memory for two of them and a half."""
    store = ModelStore(home)
    for seed, name in enumerate(("one", "two", "three")):
        path = write_tiny_gguf(tmp_path / f"{name}.gguf", seed=seed)
        pull(str(path), store, as_name=name)
    return 2.5 * memory_need(read_gguf_header(path), N_CTX).total / 1e9


async def test_all_are_answered_and_never_three_are_loaded(home, budget_gb, monkeypatch):
    monkeypatch.setenv("LOCALLLM_MEMORY_GB", str(budget_gb))
    with serving(home, "--ctx", str(N_CTX)) as server:
        most = 0

        async def watch():
            nonlocal most
            while True:
                processes = psutil.Process(server.pid).children(recursive=True)
                most = max(most, sum("serve.engine.worker" in process.cmdline() for process in processes))
                await asyncio.sleep(0.02)

        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:

            async def one(number):
                answer = await client.completions.create(
                    model=("one", "two", "three")[number % 3], prompt=f"hello {number}", max_tokens=8, timeout=120
                )
                assert answer.usage.completion_tokens >= 1
                return answer.model

            watcher = asyncio.create_task(watch())
            models = await asyncio.gather(*(one(number) for number in range(24)))
            watcher.cancel()
    assert {model.partition(":")[0] for model in models} == {"one", "two", "three"}
    assert len(models) == 24
    assert most == 2
