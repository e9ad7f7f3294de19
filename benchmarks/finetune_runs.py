"""One training run of each trainer, in a process of its own; what :mod:`benchmarks.finetune` compares.

python -m benchmarks.finetune_runs mlx-lm RUN.json   trains as ``mlx_lm.lora`` does, and prints its figures
python -m benchmarks.finetune_runs score RUN.json    the loss of an adapter on the held-out rows, one row at a time
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from localllm.machine import preload_blas
from localllm.mlx_setup import prepare_process

RANK, SCALE, RATE = 8, 20.0, 1e-4


@dataclass(frozen=True)
class Run:
    """What both trainers are told.

    Attributes:
        model: Directory of the model, in MLX's form.
        name: The model's name in ``home``.
        home: A home of localllm with the model.
        data: Directory with ``train.jsonl`` and ``valid.jsonl``, rows of prompt and completion.
        out: Where the adapter goes; must not be there.
        steps: Updates.
        rows: Of an update (mlx-lm's batch).
        row_tokens: Positions of a typical row: ``rows * row_tokens`` is our update.
        max_length: Tokens; longer rows are cut.
        layers: The last so many blocks are adapted.
        checkpointing: ``none``, ``alternate`` or ``all``: ours; mlx-lm has none or all.
        blas: mlx-lm gets the tuned BLAS too.
    """

    model: str
    name: str
    home: str
    data: str
    out: str
    steps: int
    rows: int
    row_tokens: int
    max_length: int
    layers: int
    checkpointing: str = "none"
    blas: bool = True


@dataclass(frozen=True)
class Figures:
    """What came out.

    Attributes:
        supervised: Tokens learnt from, all updates together.
        seconds: Of all updates but the first, which warms up.
        per_second: Supervised tokens a second in those.
        peak: MLX's own peak of memory, in bytes.
    """

    supervised: int
    seconds: float
    per_second: float
    peak: int


def train_ours(run: Run) -> Figures:
    """``localllm finetune RECIPE``, as a person starts it; figures from the job's own files."""
    out = Path(run.out)
    out.mkdir(parents=True)
    recipe = {
        "model": run.name, "data": [run.data], "name": out.name, "rank": RANK, "alpha": SCALE * RANK,
        "layers": run.layers, "max_length": run.max_length, "batch_tokens": run.rows * run.row_tokens,
        "steps": run.steps, "optimizer": "adam", "learning_rate": RATE, "schedule": "constant", "warmup": 0.0,
        "max_grad_norm": 0.0, "checkpointing": run.checkpointing, "eval_every": 10 * run.steps, "samples": 0,
        "patience": 0,
    }  # fmt: skip
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [Path(sys.executable).with_name("localllm"), "--home", run.home, "finetune", str(path), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    name = json.loads(done.stdout)["name"]
    job = max(Path(run.home, "jobs").iterdir(), key=lambda directory: directory.stat().st_mtime)
    history = [json.loads(line) for line in (job / "out" / "history.jsonl").read_text().splitlines()]
    updates = [record for record in history if "loss" in record]
    report = json.loads((job / "out" / "report.json").read_text())
    Path(out, "adapter").symlink_to(Path(run.home, "adapters", name))
    return _figures([(update["supervised"], update["seconds"]) for update in updates], report["memory"]["measured"])


def train_mlx_lm(run: Run) -> Figures:
    """mlx-lm's own training, by its own functions, in this process."""
    if run.blas:
        preload_blas()
    import mlx.core as mx
    from mlx_lm import lora
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.utils import load

    mx.set_default_device(mx.cpu)
    updates: list[tuple[int, float]] = []
    peak = 0
    learnt = 0

    class Keep(TrainingCallback):  # type: ignore[misc]  # mlx-lm is untyped
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            nonlocal peak, learnt
            # A padding token of each row is trained too, and counted.
            n = int(info["trained_tokens"]) - learnt
            learnt += n
            updates.append((n - run.rows, n / info["tokens_per_second"]))
            peak = int(info["peak_memory"] * 1e9)

        def on_val_loss_report(self, info: dict[str, Any]) -> None:
            pass

    given = {
        "model": run.model, "data": run.data, "train": True, "mask_prompt": True, "num_layers": run.layers,
        "batch_size": run.rows, "iters": run.steps, "val_batches": 1, "steps_per_report": 1,
        "steps_per_eval": 10 * run.steps, "save_every": 10 * run.steps, "learning_rate": RATE,
        "adapter_path": f"{run.out}/adapter", "max_seq_length": run.max_length,
        "grad_checkpoint": run.checkpointing != "none", "trust_remote_code": False,
        "optimizer_config": {"adam": {"bias_correction": True}},
        "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE},
    }  # fmt: skip
    args = SimpleNamespace(**{**lora.CONFIG_DEFAULTS, **given})
    model, tokenizer = load(run.model)
    train, valid, _ = lora.load_dataset(args, tokenizer)
    # No held-out rows: mlx-lm scores some before the first update, and the peak of that is not training's.
    del valid
    mx.reset_peak_memory()
    lora.train_model(args, model, train, [], Keep())
    return _figures(updates, peak)


def _figures(updates: list[tuple[int, float]], peak: int) -> Figures:
    counted = updates[1:]
    supervised, seconds = sum(n for n, _ in counted), sum(s for _, s in counted)
    return Figures(sum(n for n, _ in updates), seconds, supervised / seconds, peak)


def score(run: Run) -> float:
    """Mean loss of the held-out rows' completions under base and adapter, in nats a token; loaded by mlx-lm alone."""
    prepare_process(0, cpu=True)
    import mlx.core as mx
    from mlx_lm.utils import load

    model, tokenizer = load(run.model, adapter_path=f"{run.out}/adapter" if run.out else None)
    total, count = 0.0, 0
    for line in Path(run.data, "valid.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        tokens = tokenizer.apply_chat_template(chat, return_dict=False)[: run.max_length]
        logits = model(mx.array([tokens[:-1]]))[0, len(prompt) - 1 :].astype(mx.float32)
        targets = mx.array(tokens[len(prompt) :])
        losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        total += float(losses.sum().item())
        count += len(targets)
    return total / count


def in_process(task: str, run: Run) -> Any:
    """``task`` in a fresh process; what it printed last, read as JSON."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.finetune_runs", task, json.dumps(asdict(run))],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{task} failed after {time.perf_counter() - began:.0f} s:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Do one task in this process."""
    task, run = sys.argv[1], Run(**json.loads(sys.argv[2]))
    print(json.dumps(score(run) if task == "score" else asdict(train_mlx_lm(run))))


if __name__ == "__main__":
    main()
