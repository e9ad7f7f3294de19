"""``localllm finetune --data ORG/NAME``: the rows of a data set of the hub, here the fake one."""

import json
from pathlib import Path

import pytest

from app.cli.main import main
from finetune.data.hub import fetch_named
from localllm.adapters import AdapterStore
from localllm.jobs.store import JobStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.hub import COMMIT, FakeHub, FakeRepository
from tests.fakes.jobs import ROOT, ended

NAME = "acme/sums"


@pytest.fixture
def hub(home, tmp_path, monkeypatch, capsys):
    """A hub with one data set, for processes of their own; a tiny llama is in the store as ``tiny:hf``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LOCALLLM_GPU_LAYERS", "0")
    monkeypatch.chdir(tmp_path)
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    capsys.readouterr()
    files = {"train.jsonl": rows(0, 30), "validation.jsonl": rows(30, 35), "test.jsonl": b"{}\n"}
    with FakeHub({f"datasets/{NAME}": FakeRepository(files)}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


def rows(first, end):
    lines = [json.dumps({"prompt": f"Say {i}. ", "completion": f"It is {i}."}) for i in range(first, end)]
    return "\n".join([*lines, ""]).encode()


def train(*more):
    return main(["finetune", "tiny:hf", "--data", NAME, "--steps", "3", "--rank", "2", *more])


@pytest.mark.slow
def test_a_data_set_is_fetched_learnt_and_recorded(hub, home, capsys):
    assert train("--json") == 0
    out, err = capsys.readouterr()
    assert "acme/sums is no file here: it is taken for a data set of the Hugging Face hub." in err
    assert f"acme/sums is a data set of the Hugging Face hub: 2 files, commit {COMMIT[:12]}." in err
    result = json.loads(out)
    assert result["name"] == "sums"
    assert result["report"]["data"]["commits"] == {NAME: COMMIT}
    assert (result["report"]["data"]["train"], result["report"]["data"]["valid"]) == (30, 5)
    beside = AdapterStore(home).directory(AdapterStore(home).resolve("sums"))
    assert f"- {NAME}\n" in (beside / "recipe.yaml").read_text()
    assert json.loads((beside / "report.json").read_text())["data"]["commits"] == {NAME: COMMIT}

    # It is asked for again, and not fetched; a path of that name wins, and asks nobody.
    hub.requests.clear()
    assert main(["finetune", "tiny:hf", "--data", NAME, "--check"]) == 0
    assert "30 examples to learn from, 5 held out." in capsys.readouterr().out
    assert hub.downloads() == []
    assert hub.requests
    assert all(path.stat().st_mode & 0o077 == 0 for path in [home.datasets, *home.datasets.rglob("*")])
    hub.requests.clear()
    Path(NAME).mkdir(parents=True)
    (Path(NAME) / "train.jsonl").write_bytes(rows(0, 9))
    assert main(["finetune", "tiny:hf", "--data", NAME, "--check"]) == 0
    assert "Rows: 9 prompt/completion." in capsys.readouterr().out
    assert hub.requests == []


@pytest.mark.slow
def test_a_job_that_goes_on_keeps_to_its_commit_and_asks_nobody(hub, home, capsys):
    hub.repositories[f"datasets/{NAME}"].files["train.jsonl"] = b'{"foo": 1}\n'
    assert train() == 1
    assert "train.jsonl:1: its fields (foo) are of no known shape" in capsys.readouterr().err
    hub.repositories.clear()
    hub.requests.clear()
    job = JobStore(home).list()[-1]
    assert ended(job).state == "failed"
    kept = home.datasets / "acme--sums" / COMMIT / "train.jsonl"
    kept.write_bytes(rows(0, 30))
    assert main(["jobs", "resume", job.id]) == 0
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "gated", "code", "said"),
    [
        ("acme/none", False, 1, "There is no file or directory acme/none. The hub has no repository acme/none"),
        (NAME, True, 1, "acme/sums is gated"),
        ("acme/sums:odd", False, 1, "acme/sums has no split 'odd'"),
        ("none.jsonl", False, 1, "There is no file or directory none.jsonl."),
    ],
)
def test_what_cannot_be_had_is_said(hub, home, capsys, name, gated, code, said):
    hub.repositories[f"datasets/{NAME}"].gated = gated
    assert main(["finetune", "tiny:hf", "--data", name]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_only_what_was_named_and_is_not_here_is_asked_for(home, tmp_path, monkeypatch):
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        (tmp_path / "rows.jsonl").write_bytes(rows(0, 2))
        assert (
            fetch_named([str(tmp_path / "rows.jsonl"), str(tmp_path / "none"), "none.json", str(tmp_path)], home) == {}
        )
        assert hub.requests == []
