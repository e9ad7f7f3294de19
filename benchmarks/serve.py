"""localllm's server beside its peers, in turn, on the same model.

    .venv/bin/python -m benchmarks.serve [--rounds 3] [--only decode,prefix] [--json FILE]

Each round starts every server once (A B A B), runs every scenario on it, and stops it; the medians over the rounds are
printed as a Markdown table. ``llama-server`` is taken from ``$LLAMA_SERVER`` or the PATH, and left out with a line
that says so where it is absent. Measure on a machine that does nothing else: a second busy process makes the threads
of llama.cpp crawl.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2

from benchmarks.load import TIMEOUT, complete, percentile, together
from benchmarks.peers import PEERS, Load, Running, missing, starter
from localllm.paths import Home

Figures = dict[str, float]
Scenario = Callable[[httpx2.AsyncClient, Running, str], Awaitable[Figures]]

_SENTENCES = (
    "The harbour was quiet before dawn, and the boats lay still. ",
    "A baker lit the oven and counted the loaves of yesterday. ",
    "Rain had washed the dust from the leaves of the old plane trees. ",
    "Two children carried a ladder across the square without a word. ",
    "The clock of the town hall had been slow since the winter. ",
)


def passage(seed: str, n_tokens: int) -> str:
    """About ``n_tokens`` tokens of text that differ from the first word on with ``seed``."""
    sentences = [_SENTENCES[(hash_of(seed) + i) % len(_SENTENCES)] for i in range(n_tokens // 13 + 1)]
    return f"{seed}: " + "".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences))


def hash_of(text: str) -> int:
    """A small number from a text, the same in every run (``hash`` is not)."""
    return sum(text.encode())


async def decode(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """1, 4, 8 and 16 streams of 96 tokens."""
    figures: Figures = {}
    for n in (1, 4, 8, 16):
        prompts = [f"{salt} number {i} of {n}: once upon a time" for i in range(n)]
        answers, seconds = await together(client, server.model, prompts, 96)
        gaps = [gap for answer in answers for gap in answer.gaps]
        figures[f"decode {n}: tok/s"] = sum(answer.n_tokens for answer in answers) / seconds
        figures[f"decode {n}: first token ms"] = 1000 * statistics.median(answer.first for answer in answers)
        figures[f"decode {n}: gap p50 ms"] = 1000 * percentile(gaps, 50)
        figures[f"decode {n}: gap p99 ms"] = 1000 * percentile(gaps, 99)
    return figures


async def prefix(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """A prefix of some 700 tokens asked again; one of 1,000 asked sixteen ways at once."""
    shared = passage(f"{salt} warm", 500)
    cold = await complete(client, server.model, f"{shared} Question one:", 8)
    warm = [(await complete(client, server.model, f"{shared} Question {i}:", 8)).first for i in range(5)]
    shared = passage(f"{salt} sixteen", 720)
    _, seconds = await together(client, server.model, [f"{shared} Question {i}:" for i in range(16)], 16)
    return {
        "prefix: cold first token ms": 1000 * cold.first,
        "prefix: warm first token ms": 1000 * statistics.median(warm),
        "prefix: 16 ways s": seconds,
    }


async def arrival(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """A prompt of 2,000 tokens arrives while seven streams decode."""
    streams = [
        asyncio.create_task(complete(client, server.model, f"{salt} stream {i}: in the beginning", 160))
        for i in range(7)
    ]
    await asyncio.sleep(1.0)
    late = await complete(client, server.model, passage(f"{salt} late", 1500), 8)
    answers = await asyncio.gather(*streams)
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "arrival: others' gap p50 ms": 1000 * percentile(gaps, 50),
        "arrival: others' gap p99 ms": 1000 * percentile(gaps, 99),
        "arrival: its first token ms": 1000 * late.first,
    }


SCENARIOS: dict[str, Scenario] = {"decode": decode, "prefix": prefix, "arrival": arrival}


async def measure(server: Running, names: list[str], salt: str) -> Figures:
    """Every scenario on one server."""
    # A connection for each request: llama-server closes kept ones just when the next request goes out.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=server.base_url, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
        await complete(client, server.model, "Warm up.", 16)
        figures: Figures = {}
        for name in names:
            figures |= await SCENARIOS[name](client, server, salt)
        figures["peak memory MB"] = server.peak_memory() / 1e6
    return figures


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    args = parser.parse_args()
    for name in PEERS:
        if reason := missing(name):
            print(f"left out: {reason}", file=sys.stderr)
    names = [name for name in PEERS if not missing(name)]
    results: dict[str, list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory)).ensure()
        load = Load(starter(home), args.threads, n_ctx=20480, n_batch=512, slots=16)
        for round_number in range(args.rounds):
            for name in names:
                with PEERS[name](load, home) as server:
                    figures = asyncio.run(measure(server, args.only.split(","), f"Round {round_number}"))
                results[name].append(figures)
                print(f"round {round_number + 1}: {name} done", file=sys.stderr, flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    print_table(results)


def print_table(results: dict[str, list[Figures]]) -> None:
    """Medians, and the ratio of ours to each peer's."""
    names = list(results)
    print(f"{platform.processor() or platform.machine()}, {platform.system()}, medians of {len(results[names[0]])}\n")
    peers = names[1:]
    print("| | " + " | ".join(names) + "".join(f" | ours / {peer}" for peer in peers) + " |")
    print("|---" * (1 + len(names) + len(peers)) + "|")
    for figure in results[names[0]][0]:
        medians = {name: statistics.median(round_[figure] for round_ in results[name]) for name in names}
        cells = [f"{medians[name]:.1f}" for name in names]
        cells += [f"{medians[names[0]] / medians[peer]:.2f}" for peer in peers]
        print(f"| {figure} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
