"""Thousands of requests with random cancels, disconnects, bad inputs and killed engines; nothing may leak or hang.

    .venv/bin/python -m benchmarks.soak [--requests 2000] [--clients 12] [--kills 5] [--seed 0]

Starts ``localllm serve`` with the starter model in a home of its own. Every request must end in an answer, in the
error that it asks for, or (when its engine was killed) in a 503 or an error event; afterwards sixteen requests at
once must all be answered. Prints the counts and the memory of server and engine before and after.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2
import psutil

from benchmarks.load import TIMEOUT
from benchmarks.peers import Load, Running, ours, starter
from localllm.paths import Home

WORDS = ("river", "stone", "lamp", "garden", "winter", "copper", "bridge", "island", "letter", "engine", "harbour")
BAD_BODIES = [
    (b"{", 400),
    (b"[]", 400),
    (b'{"model": "../../etc/passwd", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "smollm2-135m", "messages": []}', 400),
    (b'{"model": "smollm2-135m", "messages": [{"role": "user", "content": "x"}], "temperature": -1}', 400),
    (b'{"model": "smollm2-135m", "messages": [{"role": "user", "content": "x"}], "nonsense": 1}', 400),
]


class Soak:
    """One run.

    Args:
        server: What is asked.
        rng: Decides everything that is random.
    """

    def __init__(self, server: Running, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def client(self, http: httpx2.AsyncClient, jobs: "asyncio.Queue[int]") -> None:
        """Take jobs until none is left."""
        while not jobs.empty():
            number = jobs.get_nowait()
            act = self._rng.choices([self._answer, self._cancel, self._leave, self._bad], [6, 2, 1, 1])[0]
            try:
                outcome = await asyncio.wait_for(act(http, number), 120)
            except TimeoutError:
                outcome = "stuck"
                self.wrong.append(f"request {number} ({act.__name__}) was stuck")
            self.outcomes[outcome] += 1

    def _body(self, *, stream: bool) -> dict[str, object]:
        text = " ".join(self._rng.choices(WORDS, k=self._rng.randint(2, 60)))
        return {
            "model": self._server.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self._rng.randint(1, 32),
            "seed": self._rng.randint(0, 9),
            "stream": stream,
        }

    async def _answer(self, http: httpx2.AsyncClient, number: int) -> str:
        """A whole answer, streamed or not."""
        if self._rng.random() < 0.3:
            response = await http.post("/v1/chat/completions", json=self._body(stream=False))
            return self._judge(number, response.status_code, whole=True)
        async with http.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as response:
            lines = [line async for line in response.aiter_lines() if line]
        if any(line.startswith('data: {"error"') for line in lines):
            return "engine died"
        return self._judge(number, response.status_code, whole=bool(lines) and lines[-1] == "data: [DONE]")

    async def _cancel(self, http: httpx2.AsyncClient, number: int) -> str:
        """A stream that is closed after a few pieces."""
        async with http.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as response:
            left = self._rng.randint(0, 5)
            async for _ in response.aiter_lines():
                left -= 1
                if left < 0:
                    break
        return "cancelled" if response.status_code == 200 else self._judge(number, response.status_code, whole=True)

    async def _leave(self, http: httpx2.AsyncClient, _number: int) -> str:
        """A client that goes away before the first token."""
        try:
            async with asyncio.timeout(self._rng.uniform(0, 0.05)):
                await http.post("/v1/chat/completions", json=self._body(stream=False))
        except TimeoutError:
            return "left"
        return "answered"

    async def _bad(self, http: httpx2.AsyncClient, number: int) -> str:
        """A request that must be refused."""
        body, wanted = self._rng.choice(BAD_BODIES)
        headers = {"content-type": "application/json"}
        response = await http.post("/v1/chat/completions", content=body, headers=headers)
        if response.status_code != wanted:
            self.wrong.append(f"request {number}: {response.status_code} instead of {wanted} for {body[:60]!r}")
        return "refused"

    def _judge(self, number: int, status: int, *, whole: bool) -> str:
        if status == 200 and whole:
            return "answered"
        if status in {429, 503}:
            return f"status {status}"
        self.wrong.append(f"request {number}: status {status}, {'whole' if whole else 'cut short'}")
        return "wrong"


def engines(server: Running) -> list[psutil.Process]:
    """The processes that hold a model."""
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if "serve.engine.worker" in child.cmdline()]


def memory(server: Running) -> str:
    """Resident megabytes of server and engines."""
    sizes = [psutil.Process(server.pid), *engines(server)]
    return " + ".join(f"{process.memory_info().rss / 1e6:.0f}" for process in sizes) + " MB"


async def kill_now_and_then(server: Running, rng: random.Random, kills: int, seconds: float) -> int:
    """Kill the engine ``kills`` times, spread over about ``seconds``."""
    killed = 0
    for _ in range(kills):
        await asyncio.sleep(seconds / (kills + 1) * rng.uniform(0.5, 1.5))
        for process in engines(server):
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
    return killed


async def soak(server: Running, args: argparse.Namespace) -> bool:
    """Run it; print what happened; whether all was well."""
    rng = random.Random(args.seed)
    run = Soak(server, rng)
    async with httpx2.AsyncClient(base_url=server.base_url, timeout=TIMEOUT, trust_env=False) as http:
        warm = asyncio.Queue[int]()
        for number in range(min(100, args.requests)):
            warm.put_nowait(number)
        began = time.perf_counter()
        await asyncio.gather(*(run.client(http, warm) for _ in range(args.clients)))
        pace = (time.perf_counter() - began) / min(100, args.requests)
        print(f"memory after the first {min(100, args.requests)} requests: {memory(server)}", flush=True)
        jobs = asyncio.Queue[int]()
        for number in range(100, args.requests):
            jobs.put_nowait(number)
        killer = asyncio.create_task(kill_now_and_then(server, rng, args.kills, pace * args.requests))
        await asyncio.gather(*(run.client(http, jobs) for _ in range(args.clients)))
        killer.cancel()
        last = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=run._body(stream=False)) for _ in range(16))
        )
    print(f"memory at the end: {memory(server)}")
    print(json.dumps(dict(sorted(run.outcomes.items()))))
    answered = sum(response.status_code == 200 for response in last)
    print(f"afterwards, 16 at once: {answered} answered")
    for line in run.wrong[:20]:
        print(line)
    lost = args.requests - sum(run.outcomes.values())
    print(f"lost {lost}, stuck {run.outcomes['stuck']}, wrong {len(run.wrong)}")
    return not run.wrong and not lost and answered == 16


def main() -> None:
    """Start the server, run, stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory)).ensure()
        load = Load(starter(home), threads=2, n_ctx=4096, n_batch=512, slots=16)
        with ours(load, home) as server:
            sys.exit(not asyncio.run(soak(server, args)))


if __name__ == "__main__":
    main()
