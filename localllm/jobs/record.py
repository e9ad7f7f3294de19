"""What a job is and how it stands: ``spec.json``, written once, and ``status.json``, written at every turn."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from localllm.errors import JobError
from localllm.files import write_atomic

SPEC, STATUS = "spec.json", "status.json"
VERSION = 1

StateName = Literal["new", "queued", "waiting", "running", "done", "failed", "cancelled", "dead"]
ENDED: frozenset[StateName] = frozenset({"done", "failed", "cancelled", "dead"})


@dataclass(frozen=True)
class JobSpec:
    """What is to be done.

    Attributes:
        kind: ``pull``, ``quantize``, ``finetune``, …
        title: One line for the person, as ``smollm2-135m:f16 to q4_k_m``.
        entry: ``package.module:function``, called with a :class:`~localllm.jobs.context.JobContext`.
        arguments: For the function; JSON.
        heavy: It uses the accelerator (or all cores) and waits until no other heavy job does.
        resumable: The function can go on where it ended; it is then called with ``resume=True`` in its arguments.
        interrupt: What Ctrl-C does in the terminal that follows it: the job goes on (``detach``), or is cancelled.
    """

    kind: str
    title: str
    entry: str
    arguments: dict[str, Any] = field(default_factory=dict)
    heavy: bool = True
    resumable: bool = False
    interrupt: Literal["detach", "cancel"] = "detach"


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    Attributes:
        state: ``new`` was never started, ``queued`` has a process that begins, ``waiting`` waits for the accelerator;
            ``dead`` means that its process ended without a word.
        detail: What it waits for.
        pid: Its process, and process group; 0 before there is one. Another program's once the job has ended.
        started, ended: Seconds since the epoch; 0 when it has not.
        result: What it came to, when ``done``.
        message, hint, exit_code: What went wrong, when ``failed``.
    """

    state: StateName
    detail: str = ""
    pid: int = 0
    started: float = 0.0
    ended: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    hint: str = ""
    exit_code: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED


def write_spec(directory: Path, spec: JobSpec, created: float) -> None:
    """Write ``spec.json``.

    Raises:
        JobError: An argument cannot be written as JSON.
        DiskFullError: There is no room.
    """
    try:
        text = json.dumps({"version": VERSION, "created": created, **asdict(spec)}, indent=2, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise JobError(f"The job's arguments cannot be written down: {error}.") from error
    write_atomic(directory / SPEC, text.encode("utf-8", "replace") + b"\n")


def read_spec(directory: Path) -> tuple[JobSpec, float]:
    """The spec, and when the job was created.

    Raises:
        JobError: It is missing or damaged.
    """
    content = _read(directory / SPEC)
    try:
        created = float(content["created"])
        return JobSpec(**{item.name: content[item.name] for item in fields(JobSpec) if item.name in content}), created
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory / SPEC) from error


def write_status(directory: Path, status: JobStatus) -> None:
    """Write ``status.json``.

    Raises:
        DiskFullError: There is no room; the status before stays.
    """
    text = json.dumps(asdict(status), ensure_ascii=False)
    write_atomic(directory / STATUS, text.encode("utf-8", "replace") + b"\n")


def read_status(directory: Path) -> JobStatus:
    """The status as it was written; ``new`` when none was.

    Raises:
        JobError: It is damaged.
    """
    path = directory / STATUS
    if not path.exists():
        return JobStatus("new")
    content = _read(path)
    try:
        return JobStatus(**{item.name: content[item.name] for item in fields(JobStatus) if item.name in content})
    except TypeError as error:
        raise _damaged(path) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> JobError:
    return JobError(f"{path} cannot be read.", f"Remove the job with `localllm jobs rm {path.parent.name}`.")
