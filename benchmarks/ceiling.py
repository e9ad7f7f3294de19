"""What llama.cpp does by itself, without any server: llama-bench for one stream, llama-batched-bench for several.

Each is taken from ``$LLAMA_BENCH`` and ``$LLAMA_BATCHED_BENCH``, from beside ``$LLAMA_SERVER``, or from the PATH.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers import Load

NAME = "llama.cpp's benches"
_PROMPT = 16  # tokens, about as long as those of the decode scenario


def missing() -> str:
    """Which of the two is not here; empty when both are."""
    names = [name for name in ("llama-bench", "llama-batched-bench") if _tool(name) is None]
    return " and ".join(names) + " not on the PATH, in $LLAMA_… or beside $LLAMA_SERVER" if names else ""


def measure(load: Load, n_tokens: int) -> dict[str, float]:
    """Decode speed at 1, 4, 8 and 16 streams of ``n_tokens``, in tokens a second, prompts not counted."""
    common = ["-m", str(load.path), "-t", str(load.threads), "-b", str(load.n_batch), "-ub", str(load.n_batch)]
    alone = _run("llama-bench", *common, "-p", "0", "-n", str(n_tokens), "-r", "3", "-o", "jsonl")
    figures = {"decode 1: tok/s after the first": float(alone[-1]["avg_ts"])}
    batched = _run(
        "llama-batched-bench",
        *common,
        *("-c", str(load.n_ctx), "-npp", str(_PROMPT), "-ntg", str(n_tokens), "-npl", "4,8,16"),
        *("--kv-unified", "--output-format", "jsonl"),
    )
    return figures | {f"decode {row['pl']}: tok/s after the first": float(row["speed_tg"]) for row in batched}


def _run(name: str, *arguments: str) -> list[dict[str, float]]:
    path = _tool(name)
    assert path is not None, "asked for only where it is here"
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=600)
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not rows:
        raise RuntimeError(f"{name} failed ({result.returncode}):\n{result.stderr[-2000:]}")
    return rows


def _tool(name: str) -> str | None:
    if chosen := os.environ.get(name.upper().replace("-", "_")):
        return chosen
    if server := os.environ.get("LLAMA_SERVER"):
        beside = Path(server).with_name(name)
        if beside.exists():
            return str(beside)
    return shutil.which(name)
