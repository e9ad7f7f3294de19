"""Fine-tuning beside ``mlx_lm.lora``: supervised tokens a second, memory, and the loss that comes of it.

    python -m benchmarks.finetune --gsm8k /path/to/train.jsonl [--rounds 2] [--steps 8] [--only short,long]

Both trainers get the same model (the starter, unpacked to float32, which alone has a fast matrix product on a CPU),
the same rows, rank, scale, blocks, optimizer, learning rate, updates, and about as many tokens an update; they take
turns, each in a process of its own, on the same BLAS. The loss is that of both adapters on the same held-out rows,
read by mlx-lm alone.

=======  ==========================================================================================
short    GSM8K rows, 4 an update, as mlx-lm has it by default
long     rows joined to nearly the longest that is taken, 2 an update: nothing to pack
plain    GSM8K rows, mlx-lm on the BLAS that its wheel has (only two updates: they take minutes)
=======  ==========================================================================================

GSM8K's ``train.jsonl`` has rows of ``question`` and ``answer``; without it, rows are made up to the same lengths.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.finetune_runs import Figures, Run, in_process, train_ours
from benchmarks.peers import starter
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from localllm.paths import Home
from quant.convert import from_gguf

_SHORT, _LONG = 240, 1024  # tokens of a row
_CASES = ("short", "long", "plain")


def read_rows(path: Path | None) -> list[tuple[str, str]]:
    """Questions and answers."""
    if path is None:
        rng = random.Random(0)
        words = [
            "the",
            "of",
            "how",
            "many",
            "each",
            "then",
            "is",
            "left",
            "total",
            "buys",
            "boxes",
            "dollars",
            "12",
            "3",
        ]

        def text(n: int) -> str:
            return " ".join(rng.choice(words) for _ in range(max(4, n))) + "."

        return [(text(int(rng.gauss(48, 18))), text(int(rng.gauss(90, 40)))) for _ in range(1200)]
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(record["question"], record["answer"]) for record in records]


def join_to(rows: list[tuple[str, str]], n_characters: int) -> list[tuple[str, str]]:
    """Rows whose answers are several joined, each of about ``n_characters``."""
    joined, question, answer = [], "", ""
    for asked, answered in rows:
        question = question or asked
        answer += f"{answered}\n\n"
        if len(question) + len(answer) >= n_characters:
            joined.append((question, answer))
            question = answer = ""
    return joined


def write_rows(directory: Path, rows: list[tuple[str, str]], n_train: int, n_valid: int) -> None:
    """``train.jsonl`` and ``valid.jsonl``."""
    directory.mkdir(parents=True)
    for name, part in (("train", rows[:n_train]), ("valid", rows[n_train : n_train + n_valid])):
        lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in part]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def set_up(directory: Path, rows: list[tuple[str, str]]) -> dict[str, Run]:
    """The model, the rows of each case, and how they are run."""
    home = Home(directory / "home").ensure()
    model = directory / "model"
    from_gguf(starter(home), model, dtype="f32")
    pull(str(model), ModelStore(home), as_name="bench")
    random.Random(1).shuffle(rows)
    write_rows(directory / "short", rows, 1000, 24)
    # Some 3.3 characters a token of such text: nearly all rows stay below the limit, and close to it.
    write_rows(directory / "long", join_to(rows, 2700), 64, 4)
    short = Run(
        str(model), "bench", str(home.root), str(directory / "short"), "",
        steps=8, rows=4, row_tokens=_SHORT, max_length=_LONG, layers=16,
    )  # fmt: skip
    long = replace(short, data=str(directory / "long"), rows=2, row_tokens=_LONG)
    return {"short": short, "long": long, "plain": replace(short, steps=2, blas=False)}


def compare(case: str, run: Run, out: Path, rounds: int, memory: str) -> dict[str, list[dict[str, Any]]]:
    """Both trainers in turn."""
    results: dict[str, list[dict[str, Any]]] = {"localllm": [], "mlx_lm.lora": []}
    for number in range(rounds):
        for name, figures in results.items():
            this = replace(run, out=str(out / f"{case}-{name.split('.')[0]}-{number}".replace("_", "-")))
            if name == "localllm":
                made = train_ours(replace(this, checkpointing=memory))
            else:
                made = Figures(**in_process("mlx-lm", this))
            loss = in_process("score", this) if case != "plain" else None
            figures.append({**asdict(made), "loss": loss})
            print(f"{case}, round {number + 1}: {name}: {json.dumps(figures[-1])}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    """Run the cases, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, help="its train.jsonl")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default=",".join(_CASES), help=f"some of {', '.join(_CASES)}")
    parser.add_argument("--checkpointing", default="none", help="ours: none, alternate or all")
    args = parser.parse_args()
    print("| case | figure | localllm | mlx_lm.lora | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        runs = set_up(directory, read_rows(args.gsm8k))
        for case in args.only.split(","):
            run = runs[case] if case == "plain" else replace(runs[case], steps=args.steps)
            results = compare(case, run, directory / "out", 1 if case == "plain" else args.rounds, args.checkpointing)
            for line in table(case, results):
                print(line, flush=True)


def table(case: str, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Rows of the table: medians and their ratio."""
    lines = []
    for key, label, unit in (
        ("per_second", "supervised tokens a second", 1.0),
        ("peak", "peak of MLX's memory, GB", 1e9),
        ("supervised", "supervised tokens", 1.0),
        ("loss", "loss on held-out rows", 1.0),
    ):
        values = [[figures[key] for figures in results[name]] for name in results]
        if any(value is None for column in values for value in column):
            continue
        ours, theirs = (statistics.median(column) / unit for column in values)
        lines.append(f"| {case} | {label} | {ours:.4g} | {theirs:.4g} | {ours / theirs:.2f} |")
    return lines


if __name__ == "__main__":
    main()
