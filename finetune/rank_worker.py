"""One rank of a training that several processes do together; started by ``mlx.launch``.

    python -P -m finetune.rank_worker REQUEST

REQUEST is the JSON that :func:`finetune.rank_launch.train_together` makes. A rank ends itself when ``mlx.launch`` is
gone, and one on the machine of the job when the job's process is.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from finetune.jobs import follow_recipe
from finetune.recipe import Recipe
from localllm.errors import JobCancelledError, LocalLLMError
from localllm.jobs.context import JobContext
from localllm.jobs.event_log import EventWriter
from localllm.jobs.events import Event
from localllm.jobs.job import EVENTS, Job
from localllm.jobs.switch import CancelSwitch
from localllm.paths import Home
from localllm.private_process import keep_private

_POLL_SECONDS = 0.5
_CANCELLED_CODE = 130


class _CancelFile(CancelSwitch):
    """Asked for by the job's file alone; the signals are the job's own process's."""

    @property
    def requested(self) -> bool:
        return self._file.exists()


class _Leader(JobContext):
    """The job, seen from rank 0."""

    def __init__(self, job: Job, *, resuming: bool) -> None:
        switch = _CancelFile(job.cancel_path, lambda: None)
        super().__init__(job, EventWriter(job.directory / EVENTS), switch, resuming=resuming)


class _Helper(JobContext):
    """A job that is told and cancelled elsewhere; on another machine it is not even there."""

    def __init__(self, home: Home, *, resuming: bool) -> None:
        self.home = home
        self.resuming = resuming
        self._switch = CancelSwitch(Path(), lambda: None)

    @property
    def cancelled(self) -> bool:
        return False

    def emit(self, event: Event) -> None:
        pass


def main() -> int:
    """Train; return the exit code."""
    keep_private()
    request: dict[str, Any] = json.loads(sys.argv[1])
    rank = int(os.environ["MLX_RANK"])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # native code prints: nothing of it may get between the answers
    directory = Path(request["directory"])
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    home = Home.resolve()
    if directory.is_dir():
        job = Job(directory)
        home = job.home
        threading.Thread(target=_end_with_job, args=(job,), daemon=True).start()
    context = _Helper(home, resuming=request["resuming"]) if rank else _Leader(job, resuming=request["resuming"])
    recipe = Recipe.model_validate(request["recipe"])
    code = 0
    try:
        sharing = request["sharing"][rank]
        answer: dict[str, Any] = {"result": follow_recipe(context, recipe, request["commits"], sharing=sharing)}
    except JobCancelledError:
        answer, code = {"cancelled": True}, _CANCELLED_CODE
    except LocalLLMError as error:
        answer, code = {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}, 1
    answers.write(json.dumps({"rank": rank, **answer}) + "\n")
    answers.close()
    return code


def _end_with_launcher() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _end_with_job(job: Job) -> None:
    while job.alive:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
