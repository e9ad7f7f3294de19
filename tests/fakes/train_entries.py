"""What jobs of the Train screen tell, without a model; each waits for files in the home, never for a time."""

import json
import os
import signal
import time

from localllm.errors import DataError
from localllm.jobs.events import Checkpoint, Evaluation, Message, Progress, Sample, Step

FINDINGS = {
    "lines": ["Rows: 3 messages, 2 alpaca.", "1 rows say what another says, and are left out."],
    "n_train": 4,
    "n_valid": 1,
    "n_tokens": 1234,
    "n_learnt": 617,
    "n_bad": 0,
    "bad": [],
    "histogram": [[33, 64, 4], [65, 128, 1]],
    "previews": [["rows.jsonl:1", [["<|user|>\nWho are you?\n", False], ["I am Zorba.<|end|>", True], ["\n", False]]]],
    "updates": 40,
    "epochs": 9.6,
    "is_unpacked": True,
    "files": [],
    "sha256": "ab" * 32,
}
NEEDS = {"peak": 2_500_000_000, "budget": 8_000_000_000, "seconds": 90.0, "updates": 44, "note": "Batches of 64."}
STEPS = 1000


def check(context):
    """Finds what its arguments say, after ``gate`` is there where it is asked to wait."""
    context.emit(Progress("check", 256, None, "rows read"))
    while context.arguments.get("waits") and not (context.home.root / "gate").exists():
        time.sleep(0.01)
    if context.arguments.get("fails"):
        raise DataError("rows.jsonl is a \x1b[31mPDF.", "Name another.")
    (context.out / "findings.json").write_text(json.dumps({**FINDINGS, **context.arguments.get("findings", {})}))
    return {}


def plan(context):
    return NEEDS


def train(context):
    """Takes a step for each that ``steps`` in the home asks for; a cancel saves, ``fall`` kills it."""
    home = context.home.root
    saved = context.directory / "checkpoints"
    steps = sorted(int(path.name[5:]) for path in saved.glob("step-*"))
    step = steps[-1] if context.resuming and steps else 0
    context.emit(Message("info", "Rows: 5 messages."))
    (context.out / "plan.json").write_text(json.dumps({"fitted": {"predicted": 3_000_000_000}}))
    if not step:
        context.emit(Evaluation(0, {"loss": 2.5, "best": 0.0}))
    while not (home / "finish").exists():
        if (home / "fall").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if context.cancelled and not context.arguments.get("deaf"):
            (saved / f"step-{step:06d}").mkdir(parents=True, exist_ok=True)
            context.check_cancelled()
        wanted = int((home / "steps").read_text() or 0) if (home / "steps").exists() else 0
        if step < wanted:
            step += 1
            context.emit(Step(step, STEPS, metrics(step)))
        if step and step == wanted and not (saved / f"step-{step:06d}").exists():
            (saved / f"step-{step:06d}").mkdir(parents=True)
            context.emit(Evaluation(step, {"loss": 1 + 1 / step, "best": 1.0}))
            context.emit(Sample(step, "Who are you?", context.arguments.get("says", "I am Zorba.")))
            context.emit(Checkpoint(step, f"checkpoints/step-{step:06d}"))
        time.sleep(0.01)
    return {"name": "zorba"}


def metrics(step):
    return {
        "loss": 1 + 1 / step,
        "gradient_norm": 0.5,
        "learning_rate": 2e-4,
        "supervised": 400.0,
        "tokens_per_second": 200.0,
        "memory": 2.5e9,
    }
