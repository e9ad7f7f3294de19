"""The training loop: accumulate, clip, update, evaluate, keep the best, stop when it gets no better.

The loss of an update is the mean over all supervised tokens in it, however they are spread over batches and ranks:
sums are accumulated, and divided once.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from finetune.optimizer import Tree, clip, learning_rate
from finetune.packing import Batch, BatchPlan
from finetune.ranks import Ranks
from finetune.recipe import Recipe
from finetune.steps import Stepper
from localllm.errors import LocalLLMError


class DivergedError(LocalLLMError):
    """The loss is no number any more; the last good state is kept."""


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint.

    Attributes:
        step: Updates done.
        epoch, batch: The next batch.
        best_loss: Of the evaluations so far, in nats a token; infinity before the first.
        best_step: When that was.
        worse: Evaluations since then.
        evaluated: The update after which the last evaluation was; -1 before the first.
        supervised: Tokens learnt from.
        seconds: Time spent in updates.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0
    evaluated: int = -1
    supervised: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Update:
    """What one update did: loss in nats a supervised token, gradient norm before clipping, tokens, seconds."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    supervised: int
    tokens: int
    seconds: float


class Observer(Protocol):
    """Who hears of a run."""

    def updated(self, update: Update) -> None:
        """An update was made."""

    def evaluated(self, step: int, loss: float, *, best: bool) -> None:
        """The held-out rows were scored."""

    def checkpoint_due(self, progress: Progress, *, best: bool) -> None:
        """Save everything; ``best`` says that these are the best weights so far."""


@dataclass(frozen=True)
class Schedule:
    """When things happen, in updates.

    Attributes:
        n_steps: Updates of the run.
        accumulate: Batches in an update.
        eval_every: Updates between evaluations; 0 evaluates never.
        save_every: Updates between checkpoints.
        patience: Evaluations without a better one before the run ends; 0 never ends it.
    """

    n_steps: int
    accumulate: int
    eval_every: int
    save_every: int
    patience: int


@dataclass
class Trainer:
    """Runs the updates.

    A checkpoint must hold ``parameters``, ``optimizer.state``, ``progress`` and ``mx.random.state``; everything else is
    a function of the recipe.

    Attributes:
        model: With its adapters.
        stepper: Makes losses and gradients.
        optimizer: Updates the weights.
        recipe: For the learning rate and the clipping.
        schedule: When things happen.
        plan: The batches.
        validation: Held-out batches; may be empty.
        observer: Is told.
        check_cancelled: Raises when the run should end; called between batches.
        ranks: Who else trains.
        progress: Where the run is.
        between_updates: Weights, optimizer and progress belong together: it may be saved as it is.
    """

    model: nn.Module
    stepper: Stepper
    optimizer: optim.Optimizer
    recipe: Recipe
    schedule: Schedule
    plan: BatchPlan
    validation: Sequence[Batch]
    observer: Observer
    check_cancelled: Callable[[], None]
    ranks: Ranks
    progress: Progress = field(default_factory=Progress)
    between_updates: bool = True

    def run(self) -> Progress:
        """Train until the schedule or the patience ends.

        Raises:
            DivergedError: The loss or the gradient is no finite number.
        """
        self.parameters: Tree = self.model.trainable_parameters()
        if self._evaluation_is_due:  # of the base model; or of an update after which the run was broken off
            self._settle()
        batches = _ahead(self._batches())
        self.model.train()
        while self.progress.step < self.schedule.n_steps and not self._has_lost_patience:
            self._update(batches)
            self._settle()
        return self.progress

    def _settle(self) -> None:
        """Evaluate and save after an update, where it is time to."""
        best = self._evaluate() if self._evaluation_is_due else False
        at = self.progress.step
        if best or at == self.schedule.n_steps or (at and at % self.schedule.save_every == 0):
            self.observer.checkpoint_due(self.progress, best=best)

    @property
    def _evaluation_is_due(self) -> bool:
        at, every = self.progress.step, self.schedule.eval_every
        return bool(every) and self.progress.evaluated != at and (at % every == 0 or at == self.schedule.n_steps)

    @property
    def _has_lost_patience(self) -> bool:
        return bool(self.schedule.patience) and self.progress.worse >= self.schedule.patience

    def _batches(self) -> Iterator[tuple[int, int, Batch]]:
        """From where the run is: the epoch and number of the batch after each, and the batch."""
        epoch, first = self.progress.epoch, self.progress.batch
        while True:
            for number, batch in enumerate(self.plan.batches(epoch, first), first):
                yield epoch, number + 1, batch
            epoch, first = epoch + 1, 0

    def _update(self, batches: Iterator[tuple[int, int, Batch]]) -> None:
        began = time.perf_counter()
        total: Tree = None
        loss, supervised, tokens = mx.array(0.0), 0, 0
        for _ in range(self.schedule.accumulate):
            self.check_cancelled()
            epoch, number, batch = next(batches)
            supervised += batch.n_supervised
            tokens += batch.n_tokens
            batch_loss, gradient = self.stepper.loss_and_gradient(self.parameters, self.ranks.share(batch))
            loss = loss + batch_loss
            total = gradient if total is None else tree_map(lambda a, b: a + b, total, gradient)
            mx.eval(loss, total)
        loss, total = self.ranks.sum(loss), self.ranks.sum(total)
        gradient = tree_map(lambda g: g / max(1, supervised), total)
        gradient, norm = clip(gradient, self.recipe.max_grad_norm)
        mean, size = float(cast("float", loss.item())) / max(1, supervised), float(cast("float", norm.item()))
        if not (math.isfinite(mean) and math.isfinite(size)):
            raise DivergedError(
                f"Training diverged at update {self.progress.step + 1}: the loss is {mean}.",
                "Start it anew with a lower --learning-rate; the last good state stays in the job's checkpoints.",
            )
        self.between_updates = False
        rate = learning_rate(self.recipe, self.progress.step, self.schedule.n_steps)
        self.optimizer.learning_rate = rate
        self.parameters = self.optimizer.apply_gradients(gradient, self.parameters)
        self.model.update(self.parameters)
        mx.eval(self.parameters, self.optimizer.state)
        seconds = time.perf_counter() - began
        self.progress.step += 1
        self.progress.epoch, self.progress.batch = epoch, number
        self.progress.supervised += supervised
        self.progress.seconds += seconds
        self.between_updates = True
        self.observer.updated(Update(self.progress.step, mean, size, rate, supervised, tokens, seconds))

    def _evaluate(self) -> bool:
        """Score the held-out rows; return whether they were never scored better."""
        loss = evaluate(self.model, self.stepper, self.validation, self.ranks, self.check_cancelled)
        at = self.progress.step
        best = at > 0 and loss < self.progress.best_loss  # the base model is scored, and no candidate for the best
        self.observer.evaluated(at, loss, best=best)
        # Only now: where the observer is cancelled at its samples, a run that goes on evaluates once more.
        if best:
            self.progress.best_loss, self.progress.best_step, self.progress.worse = loss, at, 0
        elif at:
            self.progress.worse += 1
        self.progress.evaluated = at
        return best


def _ahead(batches: Iterator[tuple[int, int, Batch]]) -> Iterator[tuple[int, int, Batch]]:
    """The same batches, each laid out by another thread while the one before it is learnt from."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        following = pool.submit(next, batches)
        while True:
            batch = following.result()
            following = pool.submit(next, batches)
            yield batch


def evaluate(
    model: nn.Module,
    stepper: Stepper,
    batches: Sequence[Batch],
    ranks: Ranks,
    check_cancelled: Callable[[], None],
) -> float:
    """The mean loss of all supervised tokens in ``batches``, in nats; the model is in training mode afterwards."""
    model.eval()
    total = mx.array(0.0)
    for batch in batches:
        check_cancelled()
        total = total + stepper.loss(ranks.share(batch))
        mx.eval(total)
    model.train()
    summed: Any = ranks.sum(total)
    return float(summed.item()) / max(1, sum(batch.n_supervised for batch in batches))
