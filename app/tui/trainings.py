"""What the app shows of a training: its events, gathered as they come. Everything here reads the disk: use a thread."""

import json
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.tui.job_rows import TRAINING, JobRow, read_detail, read_row, read_rows
from app.tui.train_setup import recipe_of
from localllm.jobs.events import Evaluation, Message, Record, Sample, State, Step
from localllm.jobs.job import Job
from localllm.jobs.store import JobStore

Point = tuple[float, float]

_MOST_POINTS = 8192
_RECENT = 20  # updates that a speed is reckoned over
_SAMPLES = 4
_MESSAGES = 6


class Curve:
    """Points in the order of their x, thinned out so that any number of them takes the same room.

    Where there are too many, the lowest and the highest of every four stay: a plot looks the same.
    """

    def __init__(self) -> None:
        self.points: list[Point] = []

    def add(self, x: float, y: float) -> None:
        """Add a point; those at or behind ``x`` are of a run that was broken off, and go."""
        if self.points and self.points[-1][0] >= x:
            del self.points[bisect_left(self.points, (x, -math.inf)) :]
        self.points.append((x, y))
        if len(self.points) > _MOST_POINTS:
            groups = (self.points[start : start + 4] for start in range(0, len(self.points), 4))
            self.points = [point for group in groups for point in _lowest_and_highest(group)]


def _lowest_and_highest(group: list[Point]) -> list[Point]:
    return sorted({min(group, key=_height), max(group, key=_height)})


def _height(point: Point) -> float:
    return point[1]


@dataclass(frozen=True)
class Run:
    """A training as it stands.

    Attributes:
        row: The job.
        train: Loss by update.
        held_out: Held-out loss by update; the first, at 0, is of the model as it was.
        step: The last update; None before the first.
        tokens_per_second: Tokens learnt from, over the last updates.
        seconds_left: None while that is unknown.
        predicted: Peak of memory that was expected, in bytes; 0 while unknown.
        saved: The update of the last checkpoint; 0 where there is none.
        samples: What the model said last.
        messages: What it told last.
        is_gone: Somebody removed it.
    """

    row: JobRow
    train: tuple[Point, ...] = ()
    held_out: tuple[Point, ...] = ()
    step: Step | None = None
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    predicted: int = 0
    saved: int = 0
    samples: tuple[Sample, ...] = ()
    messages: tuple[str, ...] = ()
    is_gone: bool = False


@dataclass
class _Gathered:
    train: Curve = field(default_factory=Curve)
    held_out: Curve = field(default_factory=Curve)
    step: Step | None = None
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))  # tokens, seconds
    samples: list[Sample] = field(default_factory=list)
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=_MESSAGES))

    def take(self, record: Record) -> None:
        match record.event:
            case State("queued"):  # begun, or begun again
                self.recent.clear()
                self.messages.clear()
            case Step(step, _, metrics):
                self.step = record.event
                self.train.add(step, metrics.get("loss", math.nan))
                speed = metrics.get("tokens_per_second", 0.0)
                if speed > 0:
                    self.recent.append((metrics.get("supervised", speed), metrics.get("supervised", speed) / speed))
            case Evaluation(step, metrics):
                self.held_out.add(step, metrics.get("loss", math.nan))
            case Sample(step, _, _):
                if self.samples and self.samples[-1].step != step:
                    self.samples = []
                self.samples = [*self.samples, record.event][-_SAMPLES:]
            case Message(_, text):
                self.messages.append(text)

    @property
    def tokens_per_second(self) -> float:
        seconds = sum(seconds for _, seconds in self.recent)
        return sum(tokens for tokens, _ in self.recent) / seconds if seconds else 0.0


class RunReader:
    """Reads one training again and again, each time only what is new.

    Args:
        job: It.
        clock: Seconds since the epoch.
    """

    def __init__(self, job: Job, clock: Callable[[], float] = time.time) -> None:
        self.job = job
        self._clock = clock
        self._offset = 0
        self._gathered = _Gathered()
        self._predicted = 0

    def read(self) -> Run:
        """How it stands now."""
        row = read_row(self.job, self._clock)  # before the events: those of a job that has ended are all there
        records, self._offset = self.job.records(self._offset)
        for record in records:
            self._gathered.take(record)
        found = self._gathered
        return Run(
            row=row,
            train=tuple(found.train.points),
            held_out=tuple(found.held_out.points),
            step=found.step,
            tokens_per_second=found.tokens_per_second,
            seconds_left=read_detail(row).seconds_left,
            predicted=self._prediction(),
            saved=self._saved(),
            samples=tuple(found.samples),
            messages=tuple(found.messages),
            is_gone=not self.job.directory.is_dir(),
        )

    def _saved(self) -> int:
        """The update of the newest checkpoint: a run that is cancelled leaves one that it does not tell of."""
        names = [path.name.removeprefix("step-") for path in (self.job.directory / "checkpoints").glob("step-*")]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _prediction(self) -> int:
        """As the job has written it down before the first update."""
        if not self._predicted:
            try:
                plan = json.loads((self.job.out / "plan.json").read_text(encoding="utf-8"))
                self._predicted = int(plan["fitted"]["predicted"])
            except (OSError, ValueError, KeyError, TypeError):
                return 0  # not yet, or damaged: the job itself will say so
        return self._predicted


def read_trainings(jobs: JobStore, clock: Callable[[], float] = time.time) -> list[JobRow]:
    """Every training, those that run first, then the newest first."""
    return [row for row in read_rows(jobs, clock) if row.job.spec.kind == TRAINING]


def training_name(job: Job) -> str:
    """``model+adapter``, as far as the job says it."""
    recipe = recipe_of(job)
    return f"{recipe.get('model', '')}+{recipe.get('name', '')}" if recipe else job.spec.title
