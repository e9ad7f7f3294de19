"""What a job tells while it works: typed events, one JSON line each in ``events.jsonl``."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from localllm.errors import JobError


@dataclass(frozen=True)
class State:
    """Where the job stands: ``queued`` until its process runs, ``waiting`` for the accelerator, ``running``."""

    state: Literal["queued", "waiting", "running"]
    detail: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a stage has come; ``total`` is None while unknown, ``unit`` is ``B``, ``tok`` or empty for a count."""

    stage: str
    done: float
    total: float | None = None
    item: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Step:
    """One optimizer step, counted from 1, and its figures (``loss``, ``tokens_per_second``, ``memory`` in bytes)."""

    step: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out data after a step."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What the model says at a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A state that a resumed job goes on from; ``path`` is relative to the job's directory, or absolute."""

    step: int
    path: str


@dataclass(frozen=True)
class Message:
    """A sentence for the person."""

    level: Literal["info", "warning"]
    text: str


@dataclass(frozen=True)
class Done:
    """The job has ended well, with this result."""

    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The job has ended with an error, as :class:`~localllm.errors.LocalLLMError` has it."""

    message: str
    hint: str = ""
    exit_code: int = 1


@dataclass(frozen=True)
class Cancelled:
    """The job has ended because a person wanted it to."""


@dataclass(frozen=True)
class Unknown:
    """An event that a later version of this program wrote."""

    kind: str
    fields: dict[str, Any]


Event = State | Progress | Step | Evaluation | Sample | Checkpoint | Message | Done | Failed | Cancelled | Unknown
_TYPES: tuple[type[Event], ...] = (
    State, Progress, Step, Evaluation, Sample, Checkpoint, Message, Done, Failed, Cancelled,
)  # fmt: skip
_BY_KIND: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in _TYPES}


@dataclass(frozen=True)
class Record:
    """An event and when it was written, in seconds since the epoch."""

    time: float
    event: Event


def to_line(record: Record) -> bytes:
    """The event as one line of JSON with its line end.

    Raises:
        JobError: A value in it is nothing that JSON can hold.
    """
    event = record.event
    kind, content = (
        (event.kind, event.fields) if isinstance(event, Unknown) else (type(event).__name__.lower(), asdict(event))
    )
    try:
        text = json.dumps({"time": round(record.time, 3), "event": kind, **content}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"The job told something that cannot be written down: {error}.") from error
    # A lone surrogate (an odd file name) has no bytes in UTF-8.
    return text.encode("utf-8", "replace") + b"\n"


def from_line(line: bytes) -> Record | None:
    """The event of a line; None where the line is torn or damaged.

    A kind that is not known, or known with other fields than it needs, becomes :class:`Unknown`; fields too many are
    left out.
    """
    try:
        content = json.loads(line)
        time, kind = float(content.pop("time")), str(content.pop("event"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    found = _BY_KIND.get(kind)
    if found is None:
        return Record(time, Unknown(kind, content))
    known = {item.name for item in fields(found)}
    try:
        return Record(time, found(**{name: value for name, value in content.items() if name in known}))
    except TypeError:
        return Record(time, Unknown(kind, content))
