"""Tells the job's events of a run, keeps its history, saves its checkpoints, and lets the model speak."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from finetune.checkpoints import Checkpoints
from finetune.trainer import Progress, Trainer, Update
from localllm.files import disk_full_as_error
from localllm.jobs.context import JobContext
from localllm.jobs.events import Checkpoint, Evaluation, Sample, Step

HISTORY = "history.jsonl"
_SAMPLE_TOKENS = 64

Chat = tuple[dict[str, Any], ...]
Speak = Callable[[Chat, int], str]  # a chat and the longest answer in tokens, to the answer


class JobObserver:
    """An :class:`finetune.trainer.Observer` that is a job's.

    Args:
        context: The job.
        checkpoints: Where to save.
        speak: Generates a sample.
        prompts: What to generate samples for.
    """

    def __init__(
        self,
        context: JobContext,
        checkpoints: Checkpoints,
        speak: Speak,
        prompts: tuple[Chat, ...],
    ) -> None:
        self._context = context
        self._checkpoints = checkpoints
        self._speak = speak
        self._prompts = prompts
        self.trainer: Trainer | None = None
        self.peak = 0

    def updated(self, update: Update) -> None:
        """As in Observer, like all that follows."""
        self.peak = max(self.peak, mx.get_peak_memory())
        metrics = {
            "loss": update.loss,
            "gradient_norm": update.gradient_norm,
            "learning_rate": update.learning_rate,
            "supervised": float(update.supervised),
            "tokens_per_second": update.supervised / update.seconds,
            "memory": float(self.peak),
        }
        self._context.emit(Step(update.step, self._trainer.schedule.n_steps, metrics))
        self._keep({"step": update.step, **asdict(update)})

    def evaluated(self, step: int, loss: float, *, best: bool) -> None:
        """Tell it, and generate the samples."""
        self._context.emit(Evaluation(step, {"loss": loss, "best": float(best)}))
        self._keep({"step": step, "valid_loss": loss, "best": best})
        self._trainer.model.eval()
        for prompt in self._prompts:
            self._context.check_cancelled()
            last = str(prompt[-1].get("content", ""))
            self._context.emit(Sample(step, last, self._speak(prompt, _SAMPLE_TOKENS)))
        self._trainer.model.train()

    def checkpoint_due(self, progress: Progress, *, best: bool) -> None:
        """Save it, and say so."""
        trainer = self._trainer
        path = self._checkpoints.save(trainer.model, trainer.optimizer, progress, best=best)
        self._context.emit(Checkpoint(progress.step, str(path.relative_to(self._context.directory))))

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "set before the run"
        return self.trainer

    def _keep(self, record: dict[str, Any]) -> None:
        path = self._context.out / HISTORY
        with disk_full_as_error(path), path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a full disk tore the last line
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")


class SilentObserver:
    """That of a rank that only helps: rank 0 tells and saves."""

    trainer: Trainer | None = None

    def updated(self, update: Update) -> None:
        """Nothing, like all that follows."""

    def evaluated(self, step: int, loss: float, *, best: bool) -> None:
        """As above."""

    def checkpoint_due(self, progress: Progress, *, best: bool) -> None:
        """As above."""


def read_history(out: Path, *, until: int | None = None) -> list[dict[str, Any]]:
    """What a run has told, one record an update or evaluation; of updates done twice after a resume, the last."""
    path = out / HISTORY
    if not path.exists():
        return []
    records: dict[tuple[bool, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a crash; the resumed run writes it again
        records["valid_loss" in record, record["step"]] = record
    return [record for _, record in sorted(records.items()) if until is None or record["step"] <= until]
