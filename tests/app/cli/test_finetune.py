"""``localllm finetune``, by real jobs, on a tiny model."""

import json
import shlex

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from app.cli.main import main
from finetune.jobs import train_spec
from finetune.recipe import make_recipe
from localllm.adapters import AdapterStore
from localllm.jobs.locks import take
from localllm.jobs.record import JobStatus, write_status
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT, ended


@pytest.fixture
def tiny(home, tmp_path, monkeypatch, capsys):
    """A tiny llama in Hugging Face's form, in the store as ``tiny:hf``, and rows to learn."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LOCALLLM_GPU_LAYERS", "0")
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    capsys.readouterr()
    rows = [{"prompt": f"Say {i}. ", "completion": f"It is {i}."} for i in range(30)]
    path = tmp_path / "my rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(path, *more):
    return main(["finetune", "tiny:hf", "--data", str(path), "--steps", "6", "--rank", "4", *more])


def test_an_adapter_is_trained_and_is_there_in_both_forms(tiny, home, capsys):
    assert train(tiny, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == "my-rows"
    assert result["report"]["updates"] == 6
    assert result["report"]["held_out"]["after"] < result["report"]["held_out"]["before"]
    adapter = AdapterStore(home).resolve("my-rows")
    assert (adapter.base, adapter.rank, set(adapter.forms)) == ("tiny", 4, {"gguf", "mlx"})
    directory = AdapterStore(home).directory(adapter)
    beside = {path.name for path in directory.iterdir()}
    assert {"recipe.yaml", "report.json", "loss.svg", "history.jsonl"} <= beside
    assert (directory / "loss.svg").read_text().startswith("<svg")

    assert main(["finetune", str(directory / "recipe.yaml"), "--as", "again"]) == 0
    assert "tiny+again" in capsys.readouterr().out
    first, again = (
        (AdapterStore(home).directory(AdapterStore(home).resolve(name)) / "adapters.safetensors").read_bytes()
        for name in ("my-rows", "again")
    )
    assert first == again  # the recipe that was written down says everything


def test_what_cannot_be_is_said_before_a_job_begins(tiny, home, tmp_path, capsys):
    before = len(JobStore(home).list())
    for words, code, said in (
        (["finetune", "tiny:hf"], 2, "nothing to train on"),
        (["finetune", "none", "--data", str(tiny)], 1, "no model"),
        (["finetune", "tiny:hf", "--data", str(tiny), "--rank", "0"], 2, "rank"),
        (["finetune", "tiny:hf", "--data", ""], 2, "data.0"),
        (["finetune", "tiny:hf", "--data", str(tiny), "--as", "my bot"], 2, "'my bot'"),
        (["finetune", "tiny:hf", "--data", str(tiny), "--as", "bot:q4"], 2, "Leave out the colon"),
        (["finetune", "tiny:hf+bot", "--data", str(tiny)], 2, "models export tiny:hf+bot --to mlx"),
        (["finetune", str(tmp_path / "none.yaml")], 2, "cannot be read"),
    ):
        assert main(words) == code
        assert said in capsys.readouterr().err
    assert len(JobStore(home).list()) == before


def test_a_file_that_is_not_there_is_said_before_anything_is_read(tiny, home, capsys):
    assert main(["finetune", "tiny:hf", "--data", "none.jsonl"]) == 1
    assert "There is no file or directory none.jsonl." in capsys.readouterr().err
    assert main(["finetune", "tiny:hf", "--data", "x" * 300]) == 1
    assert "There is no file or directory xxx" in capsys.readouterr().err
    assert not list(JobStore(home).list()[-1].out.iterdir())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF model"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "a PNG picture"),
        (b"PAR1\x15\x04", "a Parquet file by another name"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "rows.jsonl:2"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a", "com\n', "rows.jsonl:2: it is no JSON"),
    ],
)
def test_bad_data_fails_with_its_reason(tiny, home, tmp_path, capsys, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert train(path) == 1
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert path.read_bytes() == content
    assert not AdapterStore(home).list()


def test_chats_need_a_chat_template_and_text_does_not(tiny, home, tmp_path, capsys):
    directory = write_hf_model(tmp_path / "plain", "llama", seed=1)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["pull", str(directory), "--as", "plain:hf"]) == 0
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    capsys.readouterr()
    assert main(["finetune", "plain:hf", "--data", str(chats)]) == 1
    err = capsys.readouterr().err
    assert "chats.jsonl:1: it is a chat, and this model has no chat template" in err
    assert "rows of prompt and completion" in err
    assert main(["finetune", "plain:hf", "--data", str(tiny), "--steps", "2", "--rank", "4"]) == 0
    assert "plain+my-rows" in capsys.readouterr().out


def test_a_taken_name_is_refused_before_training(tiny, home, capsys):
    assert train(tiny, "--as", "mine") == 0
    assert train(tiny, "--as", "mine") == 2
    assert "There is an adapter mine already." in capsys.readouterr().err


def test_a_name_that_a_training_under_way_will_take_is_refused(tiny, home, capsys):
    recipe = make_recipe({"model": "tiny:hf", "data": [str(tiny)], "name": "mine", "steps": 2})
    job = JobStore(home).create(train_spec(ModelStore(home), recipe))
    write_status(job.directory, JobStatus("waiting"))
    lock = take(job.lock_path)
    assert train(tiny, "--as", "Mine") == 2
    assert f"A training called mine is under way: job {job.id}." in capsys.readouterr().err
    lock.close()
    assert train(tiny, "--as", "mine") == 0  # the other is dead by now

    JobStore(home).resume(job)
    status = ended(job)
    assert (status.state, status.message) == ("failed", "There is an adapter mine by now.")
    assert f"localllm models rm +mine), and `localllm jobs resume {job.id}`" in status.hint
    assert not list(job.out.iterdir()), "that is said before the work, not after it"


def test_full_training_makes_a_model(tiny, home, capsys):
    assert train(tiny, "--method", "full", "--as", "whole", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == "tiny-whole:mlx"
    assert "localllm chat tiny-whole:mlx" in result["summary"]
    store = ModelStore(home)
    made = store.resolve("tiny-whole")
    assert (made.parent.name, made.extra["recipe"]["method"]) == ("tiny:hf", "full")
    model, _ = load_model(store.file(made).parent)
    base, _ = load_model(store.file(store.resolve("tiny:hf")).parent)
    weights, before = dict(tree_flatten(model.parameters())), dict(tree_flatten(base.parameters()))
    assert weights.keys() == before.keys()
    assert all((weights[name] != before[name]).any().item() for name in before if name.endswith("proj.weight"))
    best = mx.load(str(JobStore(home).list()[-1].directory / "checkpoints" / "best" / "adapters.safetensors"))
    assert all((weights[name] == best[name]).all().item() for name in weights)
    assert shlex.split(made.parent.how)[:4] == ["finetune", "tiny:hf", "--data", str(tiny)]
    assert not AdapterStore(home).list()
    assert not list(home.partial.iterdir())
    assert train(tiny, "--method", "full", "--as", "whole") == 2
    assert "There is a model tiny-whole:mlx already." in capsys.readouterr().err


def test_full_training_of_packed_weights_is_refused(tiny, home, capsys):
    assert main(["quantize", "tiny:hf", "--to", "mlx-4bit"]) == 0
    assert main(["finetune", "tiny:mlx-4bit", "--data", str(tiny), "--method", "full"]) == 2
    assert "models export tiny:mlx-4bit --to mlx" in capsys.readouterr().err


def test_the_command_lines_epochs_win_over_the_recipes_steps(tiny, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: tiny:hf\ndata: '{tiny}'\nsteps: 40\nrank: 4\nbatch_tokens: 512\nsamples: 0\n")
    assert main(["finetune", str(recipe), "--epochs", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["recipe"]["steps"] is None
    assert report["updates"] < 10


def test_rows_that_are_left_out_are_named(tiny, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    path.write_text('{"foo": 1}\n' + tiny.read_text())
    assert train(path, "--skip-bad", "--steps", "1") == 0
    assert "Left out: some.jsonl:1: its fields (foo) are of no known shape" in capsys.readouterr().err


def test_check_measures_the_rows_of_a_directory_as_training_takes_them(tiny, tmp_path, capsys):
    directory = tmp_path / "both"
    directory.mkdir()
    lines = tiny.read_text().splitlines(keepends=True)
    (directory / "train.jsonl").write_text("".join(lines[:6]))
    (directory / "valid.jsonl").write_text("".join(lines[6:]))
    words = ["finetune", "tiny:hf", "--data", str(directory)]
    assert main([*words, "--check", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["needs"]
    assert main([*words, "--rank", "4", "--json"]) == 0
    assert checked["updates"] == json.loads(capsys.readouterr().out)["report"]["plan"]["schedule"]["n_steps"]


def test_check_says_what_is_in_the_data_and_what_training_needs(tiny, home, tmp_path, capsys):
    assert main(["finetune", "tiny:hf", "--data", str(tiny), "--check"]) == 0
    out = capsys.readouterr().out
    assert "30 prompt/completion" in out
    assert "what is learnt between « and »" in out
    assert "Training needs about" in out
    assert not AdapterStore(home).list()

    path = tmp_path / "bad.jsonl"
    path.write_text('{"foo": 1}\n' + tiny.read_text())
    assert main(["finetune", "tiny:hf", "--data", str(path), "--check", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["needs"] is None
    assert record["data"]["bad"][0]["source"] == "bad.jsonl:1"
