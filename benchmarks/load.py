"""A closed-loop client for OpenAI-compatible servers: streams completions, keeps the time of every piece."""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

TIMEOUT = httpx2.Timeout(600, connect=5)
_ATTEMPTS = 20


@dataclass
class Answer:
    """One streamed answer.

    Attributes:
        asked: When the request was sent, in seconds of ``time.perf_counter``.
        times: When each piece of text arrived.
        text: All of it.
        n_tokens: Tokens, as the server counts them.
    """

    asked: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    n_tokens: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.asked

    @property
    def last(self) -> float:
        """When the last piece arrived."""
        return self.times[-1]

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def complete(client: httpx2.AsyncClient, model: str, prompt: str, n_tokens: int, **more: Any) -> Answer:
    """Stream one completion of exactly ``n_tokens`` tokens (the end of a turn is ignored), greedy."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": n_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **more,
    }
    answer = Answer(time.perf_counter())
    for attempt in range(_ATTEMPTS):
        try:
            await _stream(client, body, answer)
            break
        except httpx2.TransportError:
            # mlx-lm's server lets five connections wait and resets the others; the time that it costs it counts.
            if answer.times or attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.05)
    # llama-cpp-python's server tells of no usage in a stream; each of its pieces is a token.
    answer.n_tokens = answer.n_tokens or len(answer.times)
    return answer


async def _stream(client: httpx2.AsyncClient, body: dict[str, Any], answer: Answer) -> None:
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("choices") and chunk["choices"][0].get("text"):
                answer.times.append(time.perf_counter())
                answer.text += chunk["choices"][0]["text"]
            if chunk.get("usage"):
                answer.n_tokens = chunk["usage"]["completion_tokens"]


async def together(
    client: httpx2.AsyncClient, model: str, prompts: list[str], n_tokens: int, **more: Any
) -> tuple[list[Answer], float]:
    """All prompts at once; the answers and the seconds until the last one was complete."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(complete(client, model, prompt, n_tokens, **more) for prompt in prompts))
    return answers, time.perf_counter() - began


async def chat(client: httpx2.AsyncClient, model: str, question: str) -> int:
    """One answer as long as its first sentence (no ``max_tokens``), greedy; its number of tokens."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "temperature": 0, "stop": [".", "\n\n"]}
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise RuntimeError(f"{response.status_code}: {response.text[:300]!r}")
    return int(response.json()["usage"]["completion_tokens"])


def percentile(values: list[float], percent: int) -> float:
    """The ``percent``-th percentile; the only value when there is one."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
