"""One run from a recipe to an adapter: load, fit into memory, train, keep the best.

Runs in a job's process (:mod:`finetune.jobs`). Everything that it needs to go on after a crash is in the job's
directory: the resolved recipe, the schedule, and the checkpoints.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from finetune.base import Base
from finetune.body import find_body
from finetune.checkpoints import Checkpoints, random_state, restore_random
from finetune.data.dataset import Dataset
from finetune.lanes import Lanes
from finetune.lora import adapter_config, add_adapters
from finetune.memory_plan import GPU_PASS_SECONDS, Fitted, Probe, fit_run, probe
from finetune.observer import JobObserver, SilentObserver, Speak
from finetune.optimizer import make_optimizer
from finetune.packing import BatchPlan
from finetune.ranks import Ranks
from finetune.recipe import Recipe
from finetune.recompute import chosen
from finetune.resolve import batch_tokens, capacity_of, schedule_of
from finetune.steps import Stepper
from finetune.trainer import Progress, Schedule, Trainer
from localllm.errors import DataError
from localllm.files import write_atomic
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message

_PLAN = "plan.json"
_OPTIMIZER_COPIES = {"adamw": 2, "adam": 2, "sgd": 1, "adafactor": 1, "lion": 1, "muon": 1}


@dataclass(frozen=True)
class Plan:
    """How the run is laid out; settled once, and read again by a run that goes on.

    Attributes:
        capacity: Positions of a row.
        rows: Of a batch.
        packed: Several documents share a row.
        lanes: Streams that share the documents of a batch; 1 where there is one.
        schedule: When things happen.
        fitted: How it fits in memory.
    """

    capacity: int
    rows: int
    packed: bool
    lanes: int
    schedule: Schedule
    fitted: Fitted


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        progress: Where it ended.
        plan: How it was laid out.
        adapter: Directory of the best adapter.
        peak: Measured peak of MLX's memory, in bytes; rank 0's.
        keys: The adapted layers.
        ranks: Processes that trained together.
    """

    progress: Progress
    plan: Plan
    adapter: Path
    peak: int
    keys: list[str]
    ranks: int = 1


class Session:
    """A model, its data and its adapters, ready to be trained.

    Args:
        recipe: What to train.
        base: The model.
        data: The examples.
        context: The job.
        budget: Bytes of memory that may be used.
        speak: Generates a sample with the model as it is.
        ranks: Who else trains.
        lanes: Streams to compute on.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: Base,
        data: Dataset,
        context: JobContext,
        budget: int,
        speak: Speak,
        ranks: Ranks,
        lanes: Lanes,
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._data = data
        self._context = context
        self._budget = budget
        self._speak = speak
        self._ranks = ranks
        self._lanes = lanes
        self._body = find_body(base.model, base.n_vocab)
        mx.random.seed(recipe.seed)
        self._keys = add_adapters(base.model, recipe)

    def run(self) -> Outcome | None:
        """Train, or go on training; None where another rank leads.

        Raises:
            MemoryFitError: It does not fit.
            DivergedError: The loss is no number.
            DataError: The data is not what it was when the run began, or what rank 0 reads.
            JobCancelledError: It was cancelled; what was done is saved.
        """
        plan = self._plan()
        self._lanes = self._lanes.first(plan.lanes)
        mx.random.seed(self._recipe.seed)  # measuring has drawn from it, and a run that goes on measures nothing
        config = adapter_config(self._recipe, self._keys, len(self._base.model.layers))
        checkpoints = Checkpoints(self._context.directory / "checkpoints", config) if self._ranks.leads else None
        optimizer = make_optimizer(self._recipe)
        optimizer.init(self._base.model.trainable_parameters())
        progress = self._begin(checkpoints, optimizer)
        observer = self._observer(checkpoints)
        batches = BatchPlan(self._data.train, plan.rows, plan.capacity, plan.packed, self._recipe.seed)
        held_out = BatchPlan(self._data.valid, plan.rows, plan.capacity, plan.packed, 0)
        trainer = Trainer(
            self._base.model,
            self._stepper(plan.packed, plan.fitted.checkpointing),
            optimizer,
            self._recipe,
            plan.schedule,
            batches,
            list(held_out.batches(0)) if self._data.valid else [],
            observer,
            self._context.check_cancelled,
            self._ranks,
            progress,
        )
        observer.trainer = trainer
        mx.reset_peak_memory()
        if checkpoints is None or isinstance(observer, SilentObserver):
            trainer.run()
            return None
        progress = self._until_done(trainer, checkpoints)
        best = checkpoints.best if checkpoints.best.exists() else checkpoints.newest()
        return Outcome(progress, plan, best, observer.peak, self._keys, self._ranks.size)

    def _begin(self, checkpoints: Checkpoints | None, optimizer: optim.Optimizer) -> Progress:
        """Where the run begins: at rank 0's newest checkpoint, on every rank."""
        model, ranks = self._base.model, self._ranks
        found = (checkpoints.restore(model, optimizer) if checkpoints else None) or Progress()
        if ranks.size == 1:
            return found
        model.update(ranks.spread(model.trainable_parameters()))
        optimizer.state = ranks.spread(optimizer.state)
        told = ranks.told({"progress": asdict(found), "random": random_state()})
        restore_random(told["random"])
        return Progress(**told["progress"])

    def _observer(self, checkpoints: Checkpoints | None) -> JobObserver | SilentObserver:
        if checkpoints is None:
            return SilentObserver()
        return JobObserver(self._context, checkpoints, self._speak, self._data.prompts[: self._recipe.samples])

    def _until_done(self, trainer: Trainer, checkpoints: Checkpoints) -> Progress:
        try:
            return trainer.run()
        finally:
            # Whatever ended it (a cancel too), the weights between two updates are whole: nothing done is lost.
            if self._context.cancelled and trainer.progress.step and trainer.between_updates:
                checkpoints.save(trainer.model, trainer.optimizer, trainer.progress, best=False)

    def _plan(self) -> Plan:
        self._budget = self._ranks.least(self._budget)
        record = self._ranks.told(self._read_plan() or self._write_plan() if self._ranks.leads else None)
        if record.pop("data") != self._data.sha256:
            if not self._ranks.leads:
                raise DataError(
                    "The rows here are not those that rank 0 reads.", "Put the same files into the same place."
                )
            raise DataError(
                "The data has changed since this training began.",
                "Put it back as it was to go on, or start a new training.",
            )
        schedule, fitted = Schedule(**record.pop("schedule")), Fitted(**record.pop("fitted"))
        return Plan(schedule=schedule, fitted=fitted, **record)

    def _read_plan(self) -> dict[str, Any] | None:
        path = self._context.out / _PLAN
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return found

    def _write_plan(self) -> dict[str, Any]:
        plan = self.make_plan()
        if plan.fitted.note:
            self._context.emit(Message("info", plan.fitted.note))
        if plan.rows * plan.schedule.accumulate < self._ranks.size:
            text = f"An update has {plan.rows * plan.schedule.accumulate} rows, so some ranks have nothing to do."
            self._context.emit(Message("warning", text))
        record = {**asdict(plan), "data": self._data.sha256}
        write_atomic(self._context.out / _PLAN, json.dumps(record, indent=2) + "\n")
        return record

    def make_plan(self) -> Plan:
        """Lay the run out, measuring what it takes.

        Raises:
            MemoryFitError: It does not fit.
        """
        recipe, train = self._recipe, self._data.train
        packed = self._body.can_pack if recipe.packing is None else recipe.packing and self._body.can_pack
        if recipe.packing and not packed:
            text = "This architecture does not allow packing: rows of about the same length share a batch instead."
            self._context.emit(Message("warning", text))
        capacity = capacity_of(recipe, [*train, *self._data.valid], packed=packed)
        wanted = batch_tokens(recipe, train)
        # A row for each lane of each rank: two ranks of a machine make the batches that one would make there.
        a_row_each = min(self._lanes.n_rows * self._ranks.size, max(1, round(wanted / capacity))) * capacity
        usual = max(a_row_each, min(wanted, 1024 if self._base.on_cpu else 4096))
        micro = max(capacity, recipe.micro_tokens or usual)
        choices = ("none", "alternate", "all") if recipe.checkpointing == "auto" else (recipe.checkpointing,)
        seconds = math.inf if self._base.on_cpu else GPU_PASS_SECONDS
        fitted = fit_run(lambda which: self._probe(packed, which), choices, micro, capacity, self._budget, seconds)
        rows = max(1, fitted.micro_tokens // capacity)
        schedule = schedule_of(
            recipe,
            train,
            capacity=capacity,
            rows=rows,
            wanted=wanted,
            packed=packed,
            has_valid=bool(self._data.valid),
        )
        # Packed rows are taken apart: a lane gets documents. Others are computed as they are.
        lanes = self._lanes.n_rows if packed else min(max(1, rows // self._ranks.size), self._lanes.n_rows)
        return Plan(capacity, rows, packed, lanes, schedule, fitted)

    def _probe(self, packed: bool, which: str) -> Probe:
        parameters = self._base.model.trainable_parameters()
        lengths = [len(example.tokens) - 1 for example in self._data.train]
        n_bytes = sum(4 * value.size for _, value in tree_flatten(parameters))
        copies = _OPTIMIZER_COPIES[self._recipe.optimizer] * n_bytes
        return probe(self._stepper(packed, which), parameters, lengths, self._base.n_vocab, copies)

    def _stepper(self, packed: bool, which: str) -> Stepper:
        layers = self._base.model.layers
        adapted = layers if self._recipe.layers is None else layers[-self._recipe.layers :]
        return Stepper(
            self._body,
            packed=packed,
            fused=not self._base.on_cpu,
            checkpointed=chosen(adapted, which),
            compute=self._base.compute,
            compiled=not self._base.on_cpu,
            head_is_trained=self._recipe.method == "full",
            lanes=self._lanes,
        )


def describe(recipe: Recipe, data: Dataset, outcome: Outcome, say: Callable[[str], None]) -> dict[str, Any]:
    """The report of a run, also written beside the adapter."""
    progress, plan = outcome.progress, outcome.plan
    report = {
        "recipe": recipe.model_dump(mode="json"),
        "data": {"train": len(data.train), "valid": len(data.valid), "sha256": data.sha256},
        "plan": asdict(plan),
        "updates": progress.step,
        "supervised_tokens": progress.supervised,
        "supervised_tokens_per_second": progress.supervised / progress.seconds if progress.seconds else 0.0,
        "seconds": progress.seconds,
        "best_loss": progress.best_loss,
        "best_step": progress.best_step,
        "memory": {"predicted": plan.fitted.predicted, "measured": outcome.peak},
        "adapted_layers": outcome.keys,
        "ranks": outcome.ranks,
    }
    say(f"{progress.step} updates, {progress.supervised} tokens learnt from in {progress.seconds:.0f} s.")
    return report
