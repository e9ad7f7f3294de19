"""Quantizing beside llama.cpp's own tool: the same bytes, and how long each takes.

    LLAMA_TOOLS=/path/to/bin python -m benchmarks.quant MODEL.gguf --imatrix IMATRIX.gguf [--types q4_k_m,iq2_xs]

For every type: are the tensors byte for byte those of ``llama-quantize`` with the same importance matrix, and what is
the ratio of the times (ours from the call to the finished file; both use the same threads; they take turns, and the
medians count). MODEL should be F16 with rows that are a multiple of 256: ``benchmarks.padded_starter`` makes one.
``llama-quantize`` is built from the source archive of llama-cpp-python (``vendor/llama.cpp``).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localllm.gguf_header import read_gguf_header
from quant.llama_quantize import quantize_gguf
from quant.llama_types import FILE_TYPES


@dataclass(frozen=True)
class Row:
    """One type.

    Attributes:
        name: The type.
        differing: Tensors whose type or bytes differ.
        n_tensors: Tensors in the model.
        ours: Seconds.
        theirs: Seconds.
    """

    name: str
    differing: int
    n_tensors: int
    ours: float
    theirs: float


def differing_tensors(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many tensors differ in type, shape or bytes, and how many there are."""
    first, second = read_gguf_header(ours), read_gguf_header(theirs)
    others = {tensor.name: tensor for tensor in second.tensors}
    differing = len(set(others) ^ {tensor.name for tensor in first.tensors})
    with ours.open("rb") as our_file, theirs.open("rb") as their_file:
        for tensor in first.tensors:
            other = others.get(tensor.name)
            if other is None:
                continue
            our_file.seek(tensor.offset)
            their_file.seek(other.offset)
            same = (tensor.type_name, tensor.shape) == (other.type_name, other.shape)
            differing += not (same and our_file.read(tensor.n_bytes) == their_file.read(other.n_bytes))
    return differing, len(first.tensors)


def compare(tool: Path, model: Path, imatrix: Path | None, name: str, threads: int, repeats: int) -> Row:
    """Quantize with both, in turns."""
    with tempfile.TemporaryDirectory(dir=model.parent) as directory:
        ours, theirs = Path(directory, "ours.gguf"), Path(directory, "theirs.gguf")
        command = [tool, *(["--imatrix", imatrix] if imatrix else []), "--allow-requantize"]
        command += [model, theirs, name, str(threads)]

        def theirs_once() -> None:
            subprocess.run(command, check=True, capture_output=True)

        def ours_once() -> None:
            quantize_gguf(model, ours, name, imatrix=imatrix, n_threads=threads)

        turns = [(_seconds(ours_once), _seconds(theirs_once)) for _ in range(repeats)]
        our_seconds, their_seconds = map(statistics.median, zip(*turns, strict=True))
        return Row(name, *differing_tensors(ours, theirs), our_seconds, their_seconds)


def _seconds(work: Callable[[], None]) -> float:
    os.sync()  # nobody waits for what the other has left to be written
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    """Print the table; 1 when any byte differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--types", default=",".join(FILE_TYPES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    tools = os.environ.get("LLAMA_TOOLS")
    if not tools or not Path(tools, "llama-quantize").is_file():
        print("skipped: set LLAMA_TOOLS to the directory of llama-quantize (vendor/llama.cpp of llama-cpp-python)")
        return 0
    print("| type | tensors that differ | ours (s) | llama-quantize (s) | ratio |\n|---|---|---|---|---|")
    rows = []
    for name in args.types.split(","):
        row = compare(Path(tools, "llama-quantize"), args.model, args.imatrix, name, args.threads, args.repeats)
        rows.append(row)
        ratio = row.ours / row.theirs
        print(f"| {name} | {row.differing} of {row.n_tensors} | {row.ours:.2f} | {row.theirs:.2f} | {ratio:.2f} |")
        sys.stdout.flush()
    total = sum(row.ours for row in rows) / sum(row.theirs for row in rows)
    differing = sum(row.differing for row in rows)
    print(f"\n{len(rows)} types, {differing} tensors differ, {total:.2f} of llama-quantize's time over all types")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
