"""Eight clients at once against the same eight one after another.

    .venv/bin/python -m benchmarks.together [--clients 8] [--tokens 64] [--rounds 3]

Starts ``localllm serve`` with the starter model in a home of its own and asks it with the official ``openai`` client
over HTTP, alternately together and in turn (A B A B), and prints the median of each and their ratio. Measure on a
machine that does nothing else.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import openai

from localllm.models.pull import pull
from localllm.models.store import ModelStore
from localllm.paths import Home
from serve.discovery import running_server

MODEL = "smollm2-135m"


def ask(base_url: str, question: str, tokens: int) -> int:
    """One streamed answer; the number of its tokens."""
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        usage = [chunk.usage for chunk in stream if chunk.usage is not None]
    return usage[-1].completion_tokens


def run(base_url: str, questions: list[str], tokens: int, *, together: bool) -> tuple[float, int]:
    """Seconds and tokens for all questions."""
    counts: list[int] = []
    threads = [threading.Thread(target=lambda q=q: counts.append(ask(base_url, q, tokens))) for q in questions]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    if len(counts) != len(questions):
        sys.exit("a client failed: its traceback stands above")
    return time.perf_counter() - began, sum(counts)


def main() -> None:
    """Start the server, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory)).ensure()
        pull("starter", ModelStore(home))
        command = [sys.executable, "-P", "-m", "app", "--home", directory, "serve", MODEL, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while (record := running_server(home)) is None:
                time.sleep(0.1)
            measure(record.base_url, args)
        finally:
            server.terminate()
            server.wait()


def measure(base_url: str, args: argparse.Namespace) -> None:
    """Alternate the two ways; print what each took."""
    ask(base_url, "Warm up.", 8)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for round_number in range(args.rounds):
        for together in (True, False):
            # Other words each time, so that neither way finds the other's prompts in the cache.
            questions = [f"Round {round_number}{together}: tell me about the number {i}." for i in range(args.clients)]
            taken, tokens = run(base_url, questions, args.tokens, together=together)
            seconds[together].append(taken)
            print(
                f"{'together' if together else 'in turn ':8}  {taken:6.2f} s  {tokens / taken:6.1f} tok/s", flush=True
            )
    ratio = statistics.median(seconds[False]) / statistics.median(seconds[True])
    print(f"median: {args.clients} together are {ratio:.2f} times as fast as {args.clients} in turn")


if __name__ == "__main__":
    main()
