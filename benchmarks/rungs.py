"""The rungs of the ladder beside each other: what each way of loading, and each build of llama.cpp, costs in speed.

    .venv/bin/python -m benchmarks.rungs model.gguf [--library NAME=DIRECTORY …] [--rounds 3]

``--library`` adds a build that is not installed: ``llama_cpp/lib`` of an unpacked wheel, as
:mod:`localllm.native.rebuild` makes them. Each run is a process of its own, in turn (A B C A B C); medians are printed.
A prompt of 128 tokens in one batch, then 64 tokens one by one, on two threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from localllm.native.llama_params import WAYS
from localllm.native.processor import read_processor

_PROMPT, _DECODE = 128, 64


def measure(model: str, threads: int) -> dict[str, float]:
    """Tokens a second, in this process's way and with its library."""
    # Deferred: the library that is measured is this process's own.
    import llama_cpp as lib

    from serve.engine.llama import LlamaContext, LlamaModel

    context = LlamaContext(LlamaModel(model), n_ctx=512, n_batch=_PROMPT, n_seq=1, n_threads=threads)

    def run(tokens: list[int], position: int) -> float:
        context.batch.clear()
        context.batch.add(tokens, position, 0, logits=1)
        began = time.perf_counter()
        context.decode()
        lib.llama_synchronize(context.handle)
        return time.perf_counter() - began

    run(list(range(1000, 1000 + _PROMPT)), 0)  # warm: pages, threads
    context.clear()
    prompt = run(list(range(1000, 1000 + _PROMPT)), 0)
    decode = sum(run([1000 + i], _PROMPT + i) for i in range(_DECODE))
    return {"prompt": _PROMPT / prompt, "decode": _DECODE / decode}


def main() -> None:
    """Measure every rung in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", action="append", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measure(str(args.model), args.threads)))
        return
    libraries = [("installed", ""), *(tuple(text.split("=", 1)) for text in args.library)]
    ways = [way.name for way in WAYS if way.gpu]
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for _ in range(args.rounds):
        for name, directory in libraries:
            for way in ways:
                environment = {**os.environ, "LOCALLLM_LLAMA_WAY": way, "GOMP_SPINCOUNT": "1000"}
                if directory:
                    environment["LLAMA_CPP_LIB_PATH"] = directory
                command = [sys.executable, "-m", "benchmarks.rungs", str(args.model), "--inside"]
                done = subprocess.run(
                    [*command, "--threads", str(args.threads)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[name, way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{read_processor().name}, {args.threads} threads, {args.model.name}, medians of {args.rounds}\n")
    print("| build | way | prompt, tok/s | decode, tok/s |\n|---|---|---|---|")
    for (name, way), runs in found.items():
        prompt, decode = (statistics.median(run[figure] for run in runs) for figure in ("prompt", "decode"))
        print(f"| {name} | {way} | {prompt:.0f} | {decode:.0f} |")


if __name__ == "__main__":
    main()
