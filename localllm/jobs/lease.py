"""One heavy job at a time: whoever holds ``locks/accelerator.lock`` may use the accelerator, the others wait in line.

Each that waits holds a ticket, a lock file whose name sorts by the job's creation. A dead holder frees both.
"""

import time
from collections.abc import Callable
from pathlib import Path

from localllm.jobs.job import Job
from localllm.jobs.locks import HeldLock, is_held, take
from localllm.paths import Home

_POLL_SECONDS = 0.2
_LEASE, _TICKETS = "accelerator.lock", "accelerator-"


def take_lease(job: Job, *, on_wait: Callable[[str], None], check_cancelled: Callable[[], None]) -> HeldLock:
    """Wait for the accelerator, and take it. Of jobs that wait the one that was created first is the next.

    Args:
        job: Who wants it.
        on_wait: Told whom it waits for (``job ID: TITLE``; empty when that is not known), once for each.
        check_cancelled: Called while it waits; its exception ends the waiting.
    """
    home = job.home
    ticket_path = home.locks / f"{_TICKETS}{int(job.created * 1e6):020d}-{job.id}.lock"
    ticket = take(ticket_path, patience=1.0)
    told = None
    try:
        while True:
            if not _is_behind(home, ticket_path) and (lease := take(home.locks / _LEASE)) is not None:
                lease.note(f"job {job.id}: {job.spec.title}")
                return lease
            holder = _holder(home)
            if holder != told:
                on_wait(holder)
                told = holder
            check_cancelled()
            time.sleep(_POLL_SECONDS)
    finally:
        ticket_path.unlink(missing_ok=True)
        if ticket is not None:
            ticket.close()


def _is_behind(home: Home, mine: Path) -> bool:
    """Whether an older job waits too; tickets of the dead are thrown away."""
    for path in sorted(home.locks.glob(f"{_TICKETS}*.lock")):
        if path.name >= mine.name:
            return False
        if is_held(path):
            return True
        path.unlink(missing_ok=True)
    return False


def _holder(home: Home) -> str:
    try:
        return (home.locks / _LEASE).read_text(encoding="utf-8")
    except OSError:
        return ""
