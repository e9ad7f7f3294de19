"""Jobs whose entries are in ``tests.fakes.job_entries``, run by real processes; the fixtures are for a conftest."""

import os
import signal
import time
from pathlib import Path

import pytest

from localllm.jobs.record import JobSpec, read_status
from localllm.jobs.store import JobStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def jobs(home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    store = JobStore(home, worker="tests.fakes.job_worker")
    yield store
    for job in store.list():
        pid = read_status(job.directory).pid
        if pid and job.alive:
            os.killpg(pid, signal.SIGKILL)
        wait_until(lambda job=job: not job.alive)


@pytest.fixture
def start(jobs):
    """``start(entry, **arguments)``: a job that runs."""

    def started(entry, *, title="a title", heavy=False, resumable=False, **arguments):
        job = jobs.create(
            JobSpec("test", title, f"tests.fakes.job_entries:{entry}", arguments, heavy=heavy, resumable=resumable)
        )
        jobs.start(job)
        return job

    return started


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.01)
    return found


def ended(job):
    """Wait until the job's process is gone; return its status."""
    wait_until(lambda: not job.alive)
    return job.status()


def running(job):
    """Wait until the job's function runs."""
    wait_until(lambda: job.status().state == "running")
    return job
