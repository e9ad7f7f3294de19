"""Several processes train one model: rows are dealt out, results are those of one, and who dies is named."""

import json
import os
import signal

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from app.cli.main import main
from finetune.observer import read_history
from finetune.packing import BatchPlan
from finetune.rank_launch import _who_died, find_hosts
from finetune.ranks import Ranks
from localllm.adapters import AdapterStore
from localllm.errors import UsageError
from localllm.jobs.record import read_status
from localllm.jobs.store import JobStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT, ended, wait_until
from tests.fakes.tiny_llama import random_examples

EXAMPLES = random_examples(60)


@pytest.mark.parametrize(("size", "rows"), [(2, 1), (2, 3), (3, 2), (4, 8)])
def test_every_row_of_an_update_is_one_ranks_and_none_is_idle_for_long(size, rows):
    batches = list(BatchPlan(EXAMPLES, rows=rows, capacity=64, packed=True, seed=0).batches(0))[:6]
    group = [Ranks(rank, size) for rank in range(size)]
    shares = [[one.share(batch) for batch in batches] for one in group]
    for number, batch in enumerate(batches):
        dealt = [row.tobytes() for share in shares for row in share[number].inputs if share[number].n_tokens]
        assert sorted(dealt) == sorted(row.tobytes() for row in batch.inputs)
    counts = [sum(len(one.inputs) for one in share if one.n_tokens) for share in shares]
    assert max(counts) - min(counts) <= 1
    idle = [one for share in shares for one in share if not one.n_tokens]
    assert all(one.inputs.shape == (1, 32) for one in idle)


def test_alone_nothing_is_shared_nor_told():
    alone = Ranks()
    batch = next(BatchPlan(EXAMPLES, rows=3, capacity=64, packed=True, seed=0).batches(0))
    assert alone.share(batch) is batch
    assert alone.sum({"a": 1}) == alone.spread({"a": 1}) == alone.told({"a": 1}) == {"a": 1}
    assert alone.least(7) == 7


def test_hosts(tmp_path):
    assert find_hosts(3, "").sharing == [3, 3, 3]
    path = tmp_path / "hosts.json"
    hosts = [{"ssh": "127.0.0.1", "ips": ["10.0.0.1"]}, {"ssh": "mac2", "ips": ["10.0.0.2"]}]
    path.write_text(json.dumps({"hosts": [hosts[0], hosts[1], hosts[1]]}))
    assert find_hosts(1, str(path)).sharing == [1, 2, 2]
    for content, said in (("{", "no host file"), ("[1]", "no host file"), (json.dumps(hosts[::-1]), "first host")):
        path.write_text(content)
        with pytest.raises(UsageError, match=said):
            find_hosts(1, str(path))
    with pytest.raises(UsageError, match="cannot be 0 ranks"):
        find_hosts(0, "")


def test_the_one_that_died_is_told_from_those_that_it_took_along():
    assert _who_died([(0, 1), (1, -9), (2, -15)]) == "Rank 1 died (signal 9)"
    assert _who_died([(2, -15), (0, 3)]) == "Rank 0 died (code 3)"
    assert _who_died([]) == "A rank died without a word"


@pytest.fixture
def recipe(home, tmp_path, monkeypatch):
    """``recipe(steps)``: the file of a recipe for a tiny llama, which is in the store; updates of four batches."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LOCALLLM_GPU_LAYERS", "0")
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    rows = [{"prompt": f"Say {i}. ", "completion": f"It is {i}."} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(steps):
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"model: tiny:hf\ndata: rows.jsonl\nsteps: {steps}\nrank: 4\nsamples: 0\npatience: 0\n"
            "max_length: 128\nbatch_tokens: 512\nmicro_tokens: 128\nlearning_rate: 0.005\neval_every: 4\n"
            "save_every: 5\n"
        )
        return str(path)

    yield write
    for job in JobStore(home).list():
        if (pid := read_status(job.directory).pid) and job.alive:
            os.killpg(pid, signal.SIGKILL)
        wait_until(lambda job=job: not job.alive)


def figures(job):
    kept = ("step", "loss", "valid_loss", "gradient_norm", "supervised", "tokens")
    return [{name: record.get(name) for name in kept} for record in read_history(job.out)]


def updates(job):
    return [record["step"] for record in read_history(job.out) if "loss" in record]


def adapter(home, name):
    store = AdapterStore(home)
    return load_file(store.directory(store.resolve(name)) / "adapters.safetensors")


def ranks_of(job):
    """The processes of a job's ranks, in their order."""
    processes = psutil.Process(read_status(job.directory).pid).children(recursive=True)
    found = [one for one in processes if "finetune.rank_worker" in one.cmdline() and "MLX_RANK" in one.environ()]
    return sorted(
        (one for one in found if not one.cmdline()[2].endswith("mlx.launch")), key=lambda one: one.environ()["MLX_RANK"]
    )


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(recipe, home, tmp_path, capsys):
    path = recipe(10)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    assert main(["finetune", path, "--as", "one"]) == 0
    assert main(["finetune", path, "--as", "two", "--ranks", "2", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["report"]["ranks"] == 2
    assert main(["finetune", path, "--as", "hosts", "--hosts", str(hosts)]) == 0
    one, *others = JobStore(home).list()[-3:]
    assert json.loads((one.out / "plan.json").read_text())["schedule"]["accumulate"] == 4
    for job, name in zip(others, ("two", "hosts"), strict=True):
        for ours, expected in zip(figures(job), figures(one), strict=True):
            assert ours == pytest.approx(expected, rel=2e-6)
        ours, expected = adapter(home, name), adapter(home, "one")
        assert ours.keys() == expected.keys()
        assert max(np.abs(ours[key] - expected[key]).max() for key in expected) < 1e-5
    assert figures(others[0]) == figures(others[1])


@pytest.mark.slow
def test_a_dead_rank_is_named_and_the_job_goes_on_to_the_last_bit(recipe, home, capsys):
    path = recipe(60)
    assert main(["finetune", path, "--as", "whole", "--ranks", "2"]) == 0
    assert main(["finetune", path, "--as", "broken", "--ranks", "2", "--detach"]) == 0
    whole, job = JobStore(home).list()[-2:]
    wait_until(lambda: len(updates(job)) >= 6)
    first, second = ranks_of(job)
    second.kill()
    status = ended(job)
    assert status.message == "Rank 1 died (signal 9), and the others were ended."
    assert f"localllm jobs resume {job.id}" in status.hint
    wait_until(lambda: not first.is_running())
    assert len(updates(job)) < 60

    # The job's own process dies: the ranks end by themselves, or a resumed job would have rivals.
    JobStore(home).resume(job)
    done = len(updates(job))
    wait_until(lambda: len(updates(job)) > done)
    processes = ranks_of(job)
    os.kill(read_status(job.directory).pid, signal.SIGKILL)
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes))
    assert ended(job).state == "dead"

    JobStore(home).resume(job)
    done = len(updates(job))
    wait_until(lambda: len(updates(job)) > done)
    assert main(["jobs", "cancel", job.id]) == 0
    assert ended(job).state == "cancelled"
    saved = max(path.name for path in (job.directory / "checkpoints").glob("step-*"))
    assert saved == f"step-{updates(job)[-1]:06d}"
    capsys.readouterr()
    assert main(["jobs", "resume", job.id]) == 0
    assert "tiny+broken" in capsys.readouterr().out
    assert figures(job) == figures(whole)


@pytest.mark.slow
def test_what_a_rank_finds_wrong_is_the_jobs_error(recipe, tmp_path, capsys):
    path = recipe(4)
    (tmp_path / "rows.jsonl").write_text('{"foo": 1}\n')
    assert main(["finetune", path, "--ranks", "2"]) == 1
    assert "rows.jsonl:1: its fields (foo) are of no known shape" in capsys.readouterr().err
    assert main(["finetune", path, "--ranks", "0"]) == 2
    assert "cannot be 0 ranks" in capsys.readouterr().err
