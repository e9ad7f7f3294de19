"""Python's own share of an engine step.

    .venv/bin/python -m benchmarks.step [--threads 2] [--tokens 128]

Runs the scheduler on the starter model in this process, with the clock around every call into llama.cpp (decode and
sampling); what is left of a step is ours: choosing the batch, text, stop strings, events, and their encoding for the
pipe. Guesses are off, so that every step makes one token a stream.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import starter
from localllm.paths import Home
from serve.engine import wire
from serve.engine.loaded import LoadedModel
from serve.engine.request import Job
from serve.engine.types import EngineSpec, GenerateRequest, SamplingParams


class Stopwatch:
    """Adds up the time of wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed."""

        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            result = call(*args)
            self.seconds += time.perf_counter() - began
            return result

        return timed


def main() -> None:
    """Measure 1, 4, 8 and 16 streams, greedy and drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = starter(Home(Path(directory)).ensure())
        model = LoadedModel(EngineSpec(path=str(path), n_ctx=8192, n_threads=args.threads, n_guess=0))
        native = Stopwatch()
        backend = model.scheduler._backend
        backend.decode, backend.sample = native.wrap(backend.decode), native.wrap(backend.sample)
        print("| streams | temperature | tok/s | Python's share | per step |\n|---|---|---|---|---|")
        for temperature in (0.0, 0.8):
            for n in (1, 4, 8, 16):
                print(measure(model, native, n, temperature, args.tokens), flush=True)


def measure(model: LoadedModel, native: Stopwatch, n: int, temperature: float, tokens: int) -> str:
    """One row of the table."""
    scheduler = model.scheduler
    sampling = SamplingParams(temperature=temperature, seed=0)
    for i in range(n):
        chat = ({"role": "user", "content": f"Story {i} of {n} at {temperature}."},)
        prompt = model.tokenize(GenerateRequest(messages=chat))
        scheduler.submit(Job(i, tuple(prompt), sampling, tokens, ignore_eos=True))
    native.seconds, steps = 0.0, 0
    began = time.perf_counter()
    while not scheduler.idle:
        events = scheduler.step()
        wire.encode_frame({"events": [wire.event_to_wire(job_id, event) for job_id, event in events]})
        steps += 1
    seconds = time.perf_counter() - began
    ours = seconds - native.seconds
    return f"| {n} | {temperature} | {n * tokens / seconds:.1f} | {ours / seconds:.2%} | {ours / steps * 1e6:.0f} us |"


if __name__ == "__main__":
    main()
