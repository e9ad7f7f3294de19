"""What was never run on a Mac, run on yours: ten minutes, one report to read or to send.

    .venv/bin/python scripts/mac_report.py [--quick]

Each line is ok, DIFFERS (it works, but not as docs/mac.md says it should) or FAILED, with what was measured. Nothing of
yours is read: it works in a home of its own, with the starter model, and leaves nothing behind. It runs on Linux too,
where some lines say that they ask for a Mac.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_QUESTION = "What is gravity? Answer in two sentences."
_ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Who are you? ({number})"},
            {"role": "assistant", "content": "I am Pebble."},
        ]
    }
    for number in range(32)
]
# In a process of its own, as workers do it: MLX within its bounds, and what is kept given back.
_MLX = """
import json, time
from localllm.mlx_setup import prepare_process
prepare_process(0, cpu=False, budget=4 << 30)
import mlx.core as mx
matrix = mx.random.normal((2048, 2048))
mx.eval(matrix @ matrix)
began = time.perf_counter()
for _ in range(8):
    mx.eval(matrix @ matrix)
seconds = time.perf_counter() - began
kept = mx.get_cache_memory()
mx.clear_cache()
print(json.dumps({
    "device": str(mx.default_device()), "gflops": 8 * 2 * 2048**3 / seconds / 1e9, "kept": kept,
    "after": mx.get_cache_memory(), "wired": mx.set_wired_limit(1 << 30),
}))
"""


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    state: str
    what: str
    measured: str


class Machine:
    """Runs our commands in a home of their own.

    Args:
        home: The home.
    """

    def __init__(self, home: Path) -> None:
        self._environment = {**os.environ, "LOCALLLM_HOME": str(home), "NO_COLOR": "1"}
        self.home = home

    def run(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """``localllm`` with these words; its output."""
        return self.python("-m", "app", *words, timeout=timeout)

    def python(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Python with these words."""
        return subprocess.run(
            [sys.executable, "-P", *words],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def libraries(machine: Machine) -> list[Line]:
    """The probes of llama.cpp and of the BLAS, as the doctor tells them."""
    done = machine.run("doctor", "--json")
    report = json.loads(done.stdout)
    engines = next(section for section in report["sections"] if section["title"] == "Engines")
    states = {"ok": "ok", "warn": "DIFFERS", "problem": "FAILED"}
    return [Line(states[found["level"]], "engine", found["text"]) for found in engines["findings"]]


def every_way(machine: Machine) -> list[Line]:
    """llama.cpp in every way of loading: on the GPU, and without it."""
    lines = []
    for way in ("full", "unpacked", "cpu", "cpu-unpacked"):
        done = machine.python("-m", "localllm.native.llama_probe", way)
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
        worst = max(facts.get("single", 9), facts.get("batch", 9))
        ended = f"exit code {done.returncode}" if done.returncode else f"off by {worst:.1%} of NumPy's logits"
        lines.append(Line("ok" if not done.returncode and worst < 0.045 else "FAILED", f"llama.cpp, {way}", ended))
    return lines


def chat(machine: Machine) -> list[Line]:
    """The starter model answers, on llama.cpp and on MLX."""
    machine.run("pull", "starter", timeout=1800)
    lines = []
    for model in ("starter", "starter-mlx"):
        if model != "starter":
            made = machine.run("models", "export", "starter", "--to", "mlx", "--as", model)
            if made.returncode:
                return [*lines, Line("FAILED", "export to MLX", made.stderr[-200:])]
        began = time.perf_counter()
        done = machine.run("chat", model, _QUESTION, "--temperature", "0", "--max-tokens", "64", "--stats")
        seconds = time.perf_counter() - began
        said = done.stdout.strip().replace("\n", " ")[:80]
        stats = (done.stderr.strip().splitlines() or [""])[-1]
        lines.append(
            Line(
                "FAILED" if done.returncode or not said else "ok",
                f"chat with {model}",
                f"{seconds:.1f} s; {stats}; {said}",
            )
        )
    return lines


def bounds(machine: Machine) -> list[Line]:
    """MLX: its device, its cache, and that nothing is wired."""
    done = machine.python("-c", _MLX)
    if done.returncode:
        return [Line("FAILED", "MLX", done.stderr.strip()[-300:])]
    facts = json.loads(done.stdout)
    on_gpu = "gpu" in facts["device"]
    return [
        Line(
            "ok" if on_gpu or platform.system() != "Darwin" else "DIFFERS",
            "MLX's device",
            f"{facts['device']}, {facts['gflops']:.0f} GFLOP/s",
        ),
        Line(
            "ok" if facts["kept"] <= (4 << 30) // 8 else "FAILED",
            "MLX's cache",
            f"{facts['kept'] / 1e6:.0f} MB kept, at most 537",
        ),
        Line("ok" if facts["after"] == 0 else "FAILED", "MLX's cache, given back", f"{facts['after'] / 1e6:.0f} MB"),
        Line("ok" if facts["wired"] == 0 else "FAILED", "nothing is wired", f"limit before: {facts['wired']}"),
    ]


def training(machine: Machine) -> list[Line]:
    """A short LoRA, chatted with afterwards."""
    data = machine.home / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    words = ["finetune", "starter", "--data", str(data), "--steps", "8", "--as", "pebble"]
    began = time.perf_counter()
    done = machine.run(*words, timeout=1800)
    seconds = time.perf_counter() - began
    if done.returncode:
        return [Line("FAILED", "training", done.stderr.strip()[-300:])]
    answer = machine.run("chat", "starter+pebble", "Who are you?", "--temperature", "0", "--max-tokens", "16")
    return [
        Line("ok", "training, 8 updates", f"{seconds:.0f} s"),
        Line("ok" if not answer.returncode else "FAILED", "chat with the adapter", answer.stdout.strip()[:80]),
    ]


def main() -> int:
    """Print the report; 1 when a line failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the libraries only: a minute")
    args = parser.parse_args()
    print(f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}", flush=True)
    if platform.system() != "Darwin":
        print("This is no Mac: what is asked of Metal is not shown by this report.")
    parts = [libraries, every_way, bounds]
    if not args.quick:
        parts += [chat, training]
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(Path(directory))
        for part in parts:
            for line in part(machine):
                failed += line.state == "FAILED"
                print(f"{line.state:8} {line.what}: {line.measured}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
