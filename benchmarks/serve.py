"""localllm's server beside its peers, in turn, on the same model.

    .venv/bin/python -m benchmarks.serve [--engine mlx] [--rounds 3] [--only decode,prefix] [--json FILE]

Each round starts every server once (A B A B), runs every scenario on it, and stops it; the medians over the rounds are
printed as a Markdown table. ``benchmarks/peers.py`` tells where the peers are looked for, ``benchmarks/ceiling.py``
where llama.cpp's own benches are; what is absent is left out with a line that says so. Measure on a machine that does
nothing else: a second busy process makes the threads of llama.cpp crawl.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2

from benchmarks import ceiling
from benchmarks.load import TIMEOUT, chat, complete, percentile, together
from benchmarks.peers import PEERS, Load, Running, missing, mlx_model, starter
from localllm.paths import Home

Figures = dict[str, float]
Scenario = Callable[[httpx2.AsyncClient, Running, str], Awaitable[Figures]]

_N_TOKENS = 96  # of each stream of the decode scenario
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
    """1, 4, 8 and 16 streams."""
    figures: Figures = {}
    for n in (1, 4, 8, 16):
        prompts = [f"{salt} number {i} of {n}: once upon a time" for i in range(n)]
        front, client_began = server.front_seconds(), time.process_time()
        all_began = server.all_seconds()
        answers, seconds = await together(client, server.model, prompts, _N_TOKENS, **server.extra)
        client_seconds = time.process_time() - client_began
        all_seconds = server.all_seconds() - all_began
        gaps = [gap for answer in answers for gap in answer.gaps]
        n_tokens = sum(answer.n_tokens for answer in answers)
        figures[f"decode {n}: tok/s"] = n_tokens / seconds
        # What llama.cpp's benches measure: prompts are left out.
        begun = min(answer.asked + answer.first for answer in answers)
        figures[f"decode {n}: tok/s after the first"] = (n_tokens - n) / (max(a.last for a in answers) - begun)
        figures[f"decode {n}: client, processor ms a token"] = 1000 * client_seconds / n_tokens
        figures[f"decode {n}: server in all, processor ms a token"] = 1000 * all_seconds / n_tokens
        if front is not None:
            spent = (server.front_seconds() or front) - front
            figures[f"decode {n}: HTTP process, processor ms a token"] = 1000 * spent / n_tokens
        figures[f"decode {n}: first token ms"] = 1000 * statistics.median(answer.first for answer in answers)
        figures[f"decode {n}: gap p50 ms"] = 1000 * percentile(gaps, 50)
        figures[f"decode {n}: gap p99 ms"] = 1000 * percentile(gaps, 99)
    return figures


async def burst(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """Sixteen prompts of some 40 tokens arrive at once."""
    prompts = [passage(f"{salt} burst {i}", 26) for i in range(16)]
    answers, seconds = await together(client, server.model, prompts, 64, **server.extra)
    gaps = [gap for answer in answers for gap in answer.gaps]
    firsts = [answer.first for answer in answers]
    return {
        "burst 16: tok/s": sum(answer.n_tokens for answer in answers) / seconds,
        "burst 16: first token, median ms": 1000 * statistics.median(firsts),
        "burst 16: first token, last ms": 1000 * max(firsts),
        "burst 16: gap p50 ms": 1000 * percentile(gaps, 50),
        "burst 16: gap p99 ms": 1000 * percentile(gaps, 99),
        "burst 16: gap, longest ms": 1000 * max(gaps),
    }


async def prefix(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """A prefix of some 700 tokens asked again; one of 1,000 asked sixteen ways at once."""
    shared = passage(f"{salt} warm", 500)
    cold = await complete(client, server.model, f"{shared} Question one:", 8, **server.extra)
    warm = [
        (await complete(client, server.model, f"{shared} Question {i}:", 8, **server.extra)).first for i in range(5)
    ]
    shared = passage(f"{salt} sixteen", 720)
    questions = [f"{shared} Question {i}:" for i in range(16)]
    _, seconds = await together(client, server.model, questions, 16, **server.extra)
    return {
        "prefix: cold first token ms": 1000 * cold.first,
        "prefix: warm first token ms": 1000 * statistics.median(warm),
        "prefix: 16 ways s": seconds,
    }


async def arrival(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """A prompt of 2,000 tokens arrives while seven streams decode."""
    streams = [
        asyncio.create_task(complete(client, server.model, f"{salt} stream {i}: in the beginning", 160, **server.extra))
        for i in range(7)
    ]
    await asyncio.sleep(1.0)
    late = await complete(client, server.model, passage(f"{salt} late", 1500), 8, **server.extra)
    answers = await asyncio.gather(*streams)
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "arrival: others' gap p50 ms": 1000 * percentile(gaps, 50),
        "arrival: others' gap p99 ms": 1000 * percentile(gaps, 99),
        "arrival: its first token ms": 1000 * late.first,
    }


async def chats(client: httpx2.AsyncClient, server: Running, salt: str) -> Figures:
    """Eight questions at once that say nothing of how long an answer may be, as chat programs ask."""
    questions = [
        f"{salt}: {question}"
        for question in (
            "Name three colours.",
            "What is a harbour? One sentence.",
            "Say hello in French.",
            "What do bees make?",
            "Why is the sky blue? One sentence.",
            "Name a river.",
            "What is two and two?",
            "What is bread made of?",
        )
    ]
    began = time.perf_counter()
    counts = await asyncio.gather(*(chat(client, server.model, question) for question in questions))
    return {"chats 8: tok/s": sum(counts) / (time.perf_counter() - began), "chats 8: tokens": sum(counts)}


SCENARIOS: dict[str, Scenario] = {
    "decode": decode,
    "burst": burst,
    "chats": chats,
    "prefix": prefix,
    "arrival": arrival,
}


async def measure(server: Running, names: list[str], salt: str) -> Figures:
    """Every scenario on one server."""
    # A connection for each request: llama-server closes kept ones just when the next request goes out.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=server.base_url, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
        await complete(client, server.model, "Warm up.", 16, **server.extra)
        figures: Figures = {}
        for name in names:
            figures |= await SCENARIOS[name](client, server, salt)
        figures["peak memory MB"] = server.peak_memory() / 1e6
    return figures


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=tuple(PEERS), default="llama", help="llama.cpp, or MLX and its own peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument(
        "--peers", help="only these, of: " + ", ".join(name for peers in PEERS.values() for name in peers)
    )
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = run_rounds(args, Home(Path(directory)).ensure())
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    print_table(results)


def run_rounds(args: argparse.Namespace, home: Home) -> dict[str, list[Figures]]:
    """Every figure of every round, by peer; ours stands first, the ceiling last."""
    peers, scenarios = PEERS[args.engine], args.only.split(",")
    wanted = [name for name in peers if args.peers is None or name in args.peers.split(",")]
    reasons = {name: missing(name) for name in wanted}
    names = [name for name in wanted if not reasons[name]]
    with_ceiling = args.engine == "llama" and "decode" in scenarios
    if with_ceiling:
        reasons[ceiling.NAME] = ceiling.missing()
    for reason in filter(None, reasons.values()):
        print(f"left out: {reason}", file=sys.stderr)
    path = mlx_model(home) if args.engine == "mlx" else starter(home)
    load = Load(path, args.threads, n_ctx=20480, n_batch=512, slots=16)
    results: dict[str, list[Figures]] = defaultdict(list)
    for number in range(args.rounds):
        for name in names:
            with peers[name](load, home) as server:
                results[name].append(asyncio.run(measure(server, scenarios, f"Round {number}")))
            print(f"round {number + 1}: {name} done", file=sys.stderr, flush=True)
        if with_ceiling and not reasons[ceiling.NAME]:
            results[ceiling.NAME].append(ceiling.measure(load, _N_TOKENS))
            print(f"round {number + 1}: {ceiling.NAME} done", file=sys.stderr, flush=True)
    return results


def print_table(results: dict[str, list[Figures]]) -> None:
    """Medians, and the ratio of ours to each peer's."""
    names = list(results)
    print(f"{platform.processor() or platform.machine()}, {platform.system()}, medians of {len(results[names[0]])}\n")
    peers = names[1:] if names[0] == "localllm" else []
    print("| | " + " | ".join(names) + "".join(f" | ours / {peer}" for peer in peers) + " |")
    print("|---" * (1 + len(names) + len(peers)) + "|")
    for figure in results[names[0]][0]:
        medians = {
            name: statistics.median(round_[figure] for round_ in results[name])
            for name in names
            if figure in results[name][0]
        }
        ours = medians[names[0]]
        cells = [f"{medians[name]:.1f}" if name in medians else "" for name in names]
        cells += [f"{ours / medians[peer]:.2f}" if medians.get(peer) else "" for peer in peers]
        print(f"| {figure} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
