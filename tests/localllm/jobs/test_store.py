import json
import threading

import pytest

from localllm.errors import DiskFullError, JobError
from localllm.jobs import store as store_module
from localllm.jobs.locks import take
from localllm.jobs.record import JobSpec, JobStatus, write_status
from localllm.jobs.store import JobStore

SPEC = JobSpec("pull", "Ä model", "localllm.nothing:run", {"path": "a\udce9b", "n": 1}, heavy=False, resumable=True)


@pytest.fixture
def jobs(home):
    return JobStore(home)


def test_a_job_is_private_and_can_be_read_again(jobs, home):
    job = jobs.create(SPEC)
    assert job.directory.parent == home.jobs
    assert job.directory.stat().st_mode & 0o777 == 0o700
    assert (job.directory / "spec.json").stat().st_mode & 0o777 == 0o600
    again = jobs.get(job.id)
    assert (again.spec.title, again.spec.arguments["n"], again.created) == ("Ä model", 1, job.created)
    assert again.home == home
    assert again.status().state == "new"
    assert [entry.name for entry in home.jobs.iterdir()] == [job.id]


def test_ids_sort_by_time_and_are_short(jobs, monkeypatch):
    moments = iter([1e9, 1e9 + 1, 1.8e9])
    monkeypatch.setattr(store_module.time, "time", lambda: next(moments))
    made = [jobs.create(SPEC).id for _ in range(3)]
    assert sorted(made) == made
    assert made[0].startswith("010909-014640-")
    assert all(len(job_id) == 17 for job_id in made)
    assert [job.id for job in jobs.list()] == made


def test_a_job_is_found_by_its_beginning_or_its_letters(jobs, monkeypatch):
    monkeypatch.setattr(store_module.time, "time", lambda: 1e9)
    ids = iter(["010909-014640-abc", "010909-014640-abd", "020909-014640-xyz"])
    monkeypatch.setattr(store_module, "_new_id", lambda created: next(ids))
    for _ in range(3):
        jobs.create(SPEC)
    assert jobs.get(" 02 ").id == "020909-014640-xyz"
    assert jobs.get("ABD").id == "010909-014640-abd"
    assert jobs.get("010909-014640-abc").id == "010909-014640-abc"
    for text, message in (("01", "means 2 jobs"), ("", "no job"), ("03", "no job"), ("../x", "no job"), ("bc", "no")):
        with pytest.raises(JobError, match=message):
            jobs.get(text)


def test_arguments_that_are_no_json_leave_nothing(jobs, home):
    with pytest.raises(JobError, match="written down"):
        jobs.create(JobSpec("x", "x", "a:b", {"x": object()}))
    assert not list(home.jobs.iterdir())


def test_a_full_disk_leaves_nothing(jobs, home, monkeypatch):
    def full(*args):
        raise DiskFullError("The disk is full.")

    monkeypatch.setattr(store_module, "write_spec", full)
    with pytest.raises(DiskFullError):
        jobs.create(SPEC)
    assert not list(home.jobs.iterdir())


def test_damaged_jobs_are_not_listed(jobs):
    job = jobs.create(SPEC)
    for text in ("{", "[]", "{}", json.dumps({"created": "x"})):
        (job.directory / "spec.json").write_text(text)
        assert jobs.list() == []
        with pytest.raises(JobError, match="cannot be read"):
            jobs.get(job.id)


def test_a_spec_of_a_later_version_is_read(jobs):
    job = jobs.create(SPEC)
    path = job.directory / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "priority": 3}))
    assert jobs.get(job.id).spec.kind == "pull"


def test_an_ended_job_can_be_removed_and_not_cancelled(jobs, home):
    job = jobs.create(SPEC)
    write_status(job.directory, JobStatus("done"))
    with pytest.raises(JobError, match="it is done"):
        jobs.cancel(job)
    with pytest.raises(JobError, match="it is done"):
        jobs.resume(job)
    with pytest.raises(JobError, match="started before"):
        jobs.start(job)
    jobs.remove(job)
    assert not list(home.jobs.iterdir())
    with pytest.raises(JobError, match="gone"):
        jobs.remove(job)


def test_a_job_that_has_just_ended_can_be_removed_though_its_process_still_leaves(jobs, home):
    job = jobs.create(SPEC)
    held = take(job.lock_path)
    write_status(job.directory, JobStatus("running"))
    with pytest.raises(JobError, match="runs"):
        jobs.remove(job)
    write_status(job.directory, JobStatus("done"))
    threading.Timer(0.2, held.close).start()
    jobs.remove(job)
    assert not list(home.jobs.iterdir())


def test_a_process_that_is_gone_is_seen(jobs):
    job = jobs.create(SPEC)
    write_status(job.directory, JobStatus("running", pid=1))
    status = job.status()
    assert status.state == "dead"
    assert job.id in status.message
    assert "resume" in status.hint
    job.cancel_path.touch()
    assert job.status().state == "cancelled"
