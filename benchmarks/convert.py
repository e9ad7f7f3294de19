r"""Hugging Face's form to F16 GGUF beside llama.cpp's own converter: the same tensors, in what time and memory?

    CONVERT_HF_TO_GGUF=/path/to/convert_hf_to_gguf.py CONVERT_PYTHON=/path/to/venv/bin/python \
        python -m benchmarks.convert STARTER.gguf [--rounds 5] [--work DIRECTORY]

The converter is in the source archive of llama-cpp-python (``vendor/llama.cpp``); its Python needs torch, transformers,
gguf, sentencepiece and safetensors, in an environment of its own. Two models: the starter, unpacked to BF16, where
start-up is most of the time; and a Llama with random weights and the starter's tokenizer, 1.05 GB in BF16.

Each conversion is a whole process, from its start to its end. The two take turns, and medians count. Memory is the sum
of the kernel's high-water marks (VmHWM) of the process and all that it starts. That counts the pages of mapped files,
which the converter maps and the kernel could drop, so the largest anonymous part (RssAnon, seen every few milliseconds)
stands beside it. Ours syncs its file to the disk before it is done, and the converter does not. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quant import differing_tensors
from quant.convert import from_gguf
from quant.tensors.dtypes import from_float32
from quant.tensors.rows import OutTensor
from quant.tensors.safetensors import SINGLE, write_safetensors
from quant.tensors.source import TensorInfo

_OURS = (
    "import sys; from pathlib import Path; from quant.convert import to_gguf; "
    "to_gguf(Path(sys.argv[1]), Path(sys.argv[2]), type='f16')"
)
_POLL_SECONDS = 0.02
# Of the random model: as Llama 3.2 1B but for the vocabulary and the number of layers.
_WIDTH, _FF, _KV_WIDTH, _LAYERS = 2048, 8192, 512, 7
_ROWS = 1024  # made at once

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: From start to end.
        peak: High-water mark of resident memory, mapped files included, in bytes.
        anonymous: The most that was seen of it without mapped files, in bytes.
    """

    seconds: float
    peak: int
    anonymous: int


def watch(command: list[str]) -> Run:
    """Run ``command`` to its end.

    Raises:
        RuntimeError: It failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        peaks: dict[int, int] = {}
        anonymous = 0
        while process.poll() is None:
            found = [_memory(pid) for pid in _tree(process.pid)]
            # A process that has just ended shows nothing more.
            peaks |= {pid: max(peak, peaks.get(pid, 0)) for pid, peak, _ in found}
            anonymous = max(anonymous, sum(now for _, _, now in found))
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - start
        said.seek(0)
        words = said.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {words[-2000:]}")
    return Run(seconds, sum(peaks.values()), anonymous)


def _tree(pid: int) -> list[int]:
    """The process and all below it. psutil would read all of /proc, which takes time from those that are measured."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended
    return [pid, *(below for child in children for below in _tree(child))]


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _memory(pid: int) -> tuple[int, int, int]:
    """The process, its high-water mark, and its anonymous pages now, in bytes."""
    found = {"VmHWM": 0, "RssAnon": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended
    return pid, found["VmHWM"], found["RssAnon"]


def random_model(tokenizer: Path, target: Path) -> Path:
    """A Llama with random weights in BF16, and the tokenizer of the model directory ``tokenizer``."""
    target.mkdir()
    for file in tokenizer.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((tokenizer / "config.json").read_text())
    config |= {"hidden_size": _WIDTH, "intermediate_size": _FF, "num_hidden_layers": _LAYERS, "head_dim": 64}
    config |= {"num_attention_heads": _WIDTH // 64, "num_key_value_heads": _KV_WIDTH // 64}
    (target / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], _WIDTH)}
    shapes["model.norm.weight"] = (_WIDTH,)
    for layer in range(_LAYERS):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{norm}.weight": (_WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{block}.self_attn.{name}_proj.weight": (_WIDTH, _WIDTH) for name in "qo"}
        shapes |= {f"{block}.self_attn.{name}_proj.weight": (_KV_WIDTH, _WIDTH) for name in "kv"}
        shapes |= {f"{block}.mlp.{name}_proj.weight": (_FF, _WIDTH) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (_WIDTH, _FF)
    tensors = [_random_tensor(name, shape, seed) for seed, (name, shape) in enumerate(shapes.items())]
    write_safetensors(target, tensors, shard_bytes=1 << 40, on_tensor=lambda *_: None)
    return target


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> OutTensor:
    def chunks() -> Iterator[Array]:
        rng = np.random.default_rng(seed)
        for start in range(0, shape[0], _ROWS):
            rows = (min(_ROWS, shape[0] - start), *shape[1:])
            yield from_float32(rng.normal(0, 0.02, rows).astype(np.float32), "BF16")

    return OutTensor(TensorInfo(name, "BF16", shape), chunks)


def compare(directory: Path, converter: list[str], rounds: int, work: Path) -> bool:
    """Convert ``directory`` with both, in turn, and print a line; whether the tensors are equal."""
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    commands = {
        "ours": [sys.executable, "-P", "-c", _OURS, str(directory), str(ours)],
        "theirs": [*converter, str(directory), "--outtype", "f16", "--outfile", str(theirs)],
    }
    runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
    for number in range(rounds + 1):
        for who, command in commands.items():
            (work / f"{who}.gguf").unlink(missing_ok=True)
            os.sync()  # nobody waits for what another has left to be written
            run = watch(command)
            if number:  # the first round fills the page cache
                runs[who].append(run)
    differing, n_tensors = differing_tensors(ours, theirs)
    size = (directory / SINGLE).stat().st_size / 1e6
    cells = [f"{directory.name}, {size:,.0f} MB", f"{differing} of {n_tensors}"]
    for attribute, scale in (("seconds", 1.0), ("peak", 1e6), ("anonymous", 1e6)):
        mine, other = (statistics.median(getattr(run, attribute) for run in runs[who]) / scale for who in runs)
        digits = 2 if scale == 1.0 else 0
        cells += [f"{mine:,.{digits}f}", f"{other:,.{digits}f}", f"{mine / other:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    for who, found in runs.items():
        said = ", ".join(f"{run.seconds:.2f} s {run.peak / 1e6:.0f} MB" for run in found)
        print(f"{who}: {said}", file=sys.stderr)
    return differing == 0


def main() -> int:
    """Print the table; 1 when any byte differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("starter", type=Path, help="the starter's GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="where everything is written; a temporary directory by default")
    args = parser.parse_args()
    script, python = os.environ.get("CONVERT_HF_TO_GGUF"), os.environ.get("CONVERT_PYTHON")
    if not script or not python or not Path(script).is_file():
        print(
            "skipped: set CONVERT_HF_TO_GGUF to convert_hf_to_gguf.py (vendor/llama.cpp of llama-cpp-python), and "
            "CONVERT_PYTHON to a Python that has torch, transformers, gguf, sentencepiece and safetensors"
        )
        return 0
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        starter, large = Path(scratch, "starter"), Path(scratch, "random")
        from_gguf(args.starter, starter, dtype="bf16")
        random_model(starter, large)
        print("| model | tensors that differ | ours (s) | converter (s) | ratio ", end="")
        print("| ours, peak (MB) | converter | ratio | ours, anonymous (MB) | converter | ratio |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        equal = [compare(model, [python, script], args.rounds, Path(scratch)) for model in (starter, large)]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
