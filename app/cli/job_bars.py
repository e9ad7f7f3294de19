"""A job's events as bars and lines on standard error."""

import sys
from collections.abc import Mapping
from typing import Protocol, TextIO

from app.cli.output import Progress as Bar
from app.cli.output import Unit, human_bytes
from localllm.jobs.events import (
    Cancelled,
    Checkpoint,
    Done,
    Evaluation,
    Failed,
    Message,
    Progress,
    Record,
    Sample,
    State,
    Step,
)
from localllm.sanitize import one_line

_LABEL = 48
_UNITS: dict[str, Unit] = {"B": "B", "tok": "tok"}


class JobView(Protocol):
    """What shows a job that is followed."""

    def show(self, record: Record) -> None:
        """Take one event."""

    def close(self, note: str = "") -> None:
        """End the bar that is drawn, if there is one."""


class JobBars:
    """One bar for each stage (or for the steps), a line for everything else.

    Rates are reckoned by the events' own times, so they are right for one who comes later.

    Args:
        stream: Where it is drawn; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bar: Bar | None = None
        self._shown = ""
        self._last: Progress | None = None
        self._now = 0.0

    def show(self, record: Record) -> None:
        """Take one event."""
        self._now = record.time
        match record.event:
            case Progress(stage, done, total, item, unit) as event:
                whole = None if total is None else int(total)
                label = f"{stage} {item}"
                bar = self._on(self._shown if self._goes_on(event) else label, _UNITS.get(unit, ""))
                bar.label = one_line(label, _LABEL)
                bar.update(int(done), whole)
                self._last = event
            case Step(step, total, metrics):
                bar = self._on("steps", "")
                bar.label = f"step  {describe_metrics(metrics)}".strip()
                bar.update(step, total)
            case State("waiting", detail):
                self._say(f"Waiting {detail}.")
            case Evaluation(step, metrics):
                self._say(f"step {step}: held out: {describe_metrics(metrics)}")
            case Sample(step, _, text):
                self._say(f"step {step} says: {one_line(text, 200)}")
            case Checkpoint(step, path):
                self._say(f"step {step} saved: {path}")
            case Message("warning", text):
                self._say(f"Warning: {text}")
            case Message(_, text):
                self._say(text)
            case Done():
                self.close()
            case Failed() | Cancelled():
                self.close("stopped")

    def close(self, note: str = "") -> None:
        """End the bar that is drawn, if there is one."""
        if self._bar is not None:
            if self._last is not None and self._shown != f"{self._last.stage} {self._last.item}":
                self._bar.label = self._last.stage  # it has counted several items
            self._bar.finish(note)
            self._bar = self._last = None

    def _goes_on(self, event: Progress) -> bool:
        """Whether the bar that is drawn counts this too: counts go on from item to item, bytes are of one."""
        last = self._last
        if self._bar is None or last is None or event.unit:
            return False
        return (last.stage, last.total, last.unit) == (event.stage, event.total, "") and last.done <= event.done

    def _on(self, label: str, unit: Unit) -> Bar:
        if self._bar is None or label != self._shown:
            self.close()
            self._shown = label
            self._bar = Bar(one_line(label, _LABEL), unit=unit, stream=self._stream, clock=lambda: self._now)
        return self._bar

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.say(line)
        else:
            print(one_line(line), file=self._stream, flush=True)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """``loss 1.234  812 tok/s  3.1 GB``: figures as a person reads them; those it does not know by their names."""
    parts = []
    for name, value in metrics.items():
        match name:
            case "tokens_per_second":
                parts.append(f"{value:,.0f} tok/s")
            case "memory" | "peak_memory":
                parts.append(human_bytes(int(value)))
            case "learning_rate":
                parts.append(f"lr {value:.2g}")
            case _:
                parts.append(f"{one_line(name, 24).replace('_', ' ')} {value:.4g}")
    return "  ".join(parts)
