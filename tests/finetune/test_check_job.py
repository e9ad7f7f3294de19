"""What is in the rows, found by a process of its own."""

import json

import pytest

from app.cli.main import main
from finetune.base_model import find_in_mlx_form
from finetune.check_job import check_spec, read_findings
from finetune.recipe import make_recipe
from localllm.errors import JobError
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT, ended
from tests.fakes.models import put_model


def test_findings_are_those_of_the_rows(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    capsys.readouterr()
    rows = [{"prompt": f"Say {i}. ", "completion": f"It is {i} and \x1b[31m模型."} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"text": "a" * 9000}, *rows, rows[0], {"what": 1}]))
    jobs = JobStore(home)
    job = jobs.create(check_spec(make_recipe({"model": "tiny:hf", "data": [str(path)], "max_length": 8192})))
    jobs.start(job)
    assert ended(job).state == "done"
    found = read_findings(job)
    assert (found.n_train + found.n_valid, found.n_bad) == (21, 1)
    assert found.bad == (("rows.jsonl:23", "its fields (what) are of no known shape"),)
    assert found.lines[0] == "Rows: 20 prompt/completion, 1 text."
    assert sum(count for _, _, count in found.histogram) == 21
    assert 0 < found.n_learnt < found.n_tokens
    assert found.updates >= 1
    assert found.epochs >= 1
    assert found.is_unpacked
    assert len(found.previews) == 3
    source, pieces = found.previews[-1]
    assert source.startswith("rows.jsonl:")
    assert any(learnt and "模型" in text for text, learnt in pieces)
    assert all(sum(len(text) for text, _ in pieces) <= 4001 for _, pieces in found.previews)
    for damaged in ("{", "[1]", '{"lines": []}'):
        (job.out / "findings.json").write_text(damaged)
        with pytest.raises(JobError, match="cannot be read"):
            read_findings(job)


def test_a_gguf_model_is_unpacked_or_not_yet(home):
    put_model(home, "tiny", "q8_0", parameters=1000)
    store = ModelStore(home)
    assert find_in_mlx_form(store, store.resolve("tiny:q8_0")) is None
