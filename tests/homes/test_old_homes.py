"""Homes that earlier versions made, as tests/homes/make.py packed them: this version opens them and goes on."""

import contextlib
import json
import tarfile
from pathlib import Path

import pytest

from app.cli.main import main
from localllm.adapters import AdapterStore
from localllm.api_keys import KeyStore
from localllm.conversations import ConversationStore
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from localllm.settings import load_settings
from tests.fakes.jobs import ROOT
from tests.homes.make import PLACE

PACKED = sorted(Path(__file__).parent.glob("*.tar.xz"))


@pytest.fixture(params=PACKED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def old_home(request, home, monkeypatch):
    """The packed home in place of the test's own."""
    with tarfile.open(request.param) as archive:
        archive.extractall(home.root, filter="data")
    for path in home.root.rglob("*"):
        if path.is_file() and PLACE.encode() in (data := path.read_bytes()):
            path.write_bytes(data.replace(PLACE.encode(), str(home.root).encode()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return home


def test_models_and_adapters_are_whole(old_home):
    store = ModelStore(old_home)
    assert {str(model.model_name) for model in store.list()} == {
        "tiny:hf",
        "tiny:q8_0",
        "tiny:f16",
        "tiny-learnt:f16",
    }
    assert all(store.is_whole(model) for model in store.list())
    (adapter,) = AdapterStore(old_home).list()
    assert adapter.name == "learnt"
    assert set(adapter.forms) == {"mlx", "gguf"}


def test_what_was_made_is_known_as_made(old_home, capsys):
    for command in (
        ["quantize", "tiny:hf", "--to", "q8_0", "--imatrix", "none"],
        ["models", "export", "tiny:hf", "--to", "gguf:f16"],
    ):
        assert main(command) == 0
        assert "already" in "".join(capsys.readouterr())
    assert len(JobStore(old_home).list()) == 6


def test_conversations_have_their_branches(old_home):
    with contextlib.closing(ConversationStore(old_home.database)) as store:
        (talk,) = store.list()
        assert (talk.title, talk.model, talk.system_prompt) == ("Gravity", "tiny:q8_0", "Answer briefly.")
        asked, answer = store.active_path(talk.id)
        assert "重力" in asked.content
        assert answer.content.startswith("Gravity is a force.\n\n```py")
        assert (answer.status, answer.usage) == ("done", {"completion_tokens": 9})
        assert [message.status for message in store.siblings(answer.id)] == ["done", "error"]
        assert store.search("light")[0].conversation == talk
        deleted = store.restore(talk.id + 1)
        assert deleted.title == "Deleted"


def test_keys_and_settings_hold(old_home):
    assert [key.name for key in KeyStore(old_home).list()] == ["laptop"]
    assert load_settings(old_home.settings_file).memory_gb == 8.0


@pytest.mark.slow
def test_jobs_are_listed_and_the_cancelled_training_goes_on(old_home, capsys):
    jobs = JobStore(old_home)
    assert sorted(job.status().state for job in jobs.list()) == ["cancelled", "done", "done", "done", "done", "done"]
    (half,) = [job for job in jobs.list() if job.status().state == "cancelled"]
    before = (half.out / "history.jsonl").read_text()
    assert main(["jobs", "resume", half.id]) == 0
    assert "tiny+half" in capsys.readouterr().out
    after = (half.out / "history.jsonl").read_text()
    assert after.startswith(before.rsplit("\n", 2)[0])
    steps = [json.loads(line)["step"] for line in after.splitlines() if '"loss"' in line]
    assert steps[-1] == 120
    assert {adapter.name for adapter in AdapterStore(old_home).list()} == {"learnt", "half"}
