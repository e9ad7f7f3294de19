"""``localllm models export``, by real jobs, on a tiny model."""

import json

import pytest

from app.cli.main import main
from localllm.jobs.store import JobStore
from localllm.models.names import ModelName
from localllm.models.store import ModelStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT


@pytest.fixture
def tiny(home, tmp_path, monkeypatch, capsys):
    """A tiny llama in Hugging Face's form, in the store as ``tiny:hf``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    capsys.readouterr()
    return ModelStore(home)


def test_to_gguf_and_back_with_its_lineage(tiny, home, capsys):
    assert main(["models", "export", "tiny:hf", "--to", "gguf:f16"]) == 0
    assert capsys.readouterr().out.split()[0] == "tiny:f16"
    assert main(["models", "export", "tiny:f16", "--to", "mlx", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["variant"], record["format"], record["state"]) == ("mlx-f16", "hf", "ready")
    assert record["parent"]["name"] == "tiny:f16"
    assert record["parent"]["sha256"] == tiny.get(ModelName("tiny", "f16")).files[0].sha256
    assert record["extra"]["recipe"] == {"form": "mlx:f16"}

    n_jobs = len(JobStore(home).list())
    assert main(["models", "export", "tiny:f16", "--to", "mlx"]) == 0
    assert capsys.readouterr().out.endswith("already here\n")
    assert len(JobStore(home).list()) == n_jobs

    assert main(["models", "export", "tiny:f16", "--to", "gguf:q8_0", "--as", "small"]) == 0
    assert main(["models", "show", "small"]) == 0
    assert "small:q8_0" in (out := capsys.readouterr().out)
    assert "tiny:f16 (models export tiny:f16 --to gguf:q8_0 --as small:q8_0) <- tiny:hf" in out
    for manifest in tiny.list():
        assert tiny.is_whole(manifest)
        assert all(path.stat().st_mode & 0o077 == 0 for path in tiny.paths(manifest) if path.stat().st_nlink == 1)
    assert not list(home.partial.iterdir())


def test_a_directory_called_after_its_type_leaves_that_name_to_itself(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:f16"]) == 0
    capsys.readouterr()
    assert main(["models", "export", "tiny:f16", "--to", "gguf:f16"]) == 0
    assert capsys.readouterr().out.split()[0] == "tiny:gguf-f16"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "zip"], 2, "no form"),
        (["--to", "gguf:q4_k_m"], 2, "no type"),
        (["--to", "hf:f32"], 2, "already"),
        (["--to", "gguf", "--as", "../x"], 2, "not a model name"),
        (["--to", "gguf", "--as", "tiny:hf"], 1, "taken"),
    ],
)
def test_what_cannot_be_is_said_before_a_job_begins(tiny, home, capsys, words, code, said):
    before = len(JobStore(home).list())
    assert main(["models", "export", "tiny", *words]) == code
    assert said in capsys.readouterr().err
    assert len(JobStore(home).list()) == before


def test_a_damaged_source_leaves_nothing(tiny, home, capsys):
    directory = home.models / "tiny" / "hf"
    (directory / "config.json").write_text('{"model_type": "unheard-of", "architectures": ["X"]}')
    assert main(["models", "export", "tiny", "--to", "gguf:f16"]) == 1
    assert "unheard-of" in capsys.readouterr().err
    assert [model.variant for model in tiny.list()] == ["hf"]
    assert not list(home.partial.iterdir())


def test_a_lost_result_says_how_it_is_made_again(tiny, home, capsys):
    main(["models", "export", "tiny", "--to", "gguf:f16"])
    next((home.models / "tiny" / "f16").glob("*.gguf")).write_bytes(b"")
    capsys.readouterr()
    assert main(["models", "show", "tiny:f16"]) == 0
    assert "`localllm models export tiny:hf --to gguf:f16 --as tiny:f16` mends it" in capsys.readouterr().err


@pytest.mark.model
def test_the_starter_for_mlx(starter_home, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["models", "export", "starter", "--to", "mlx"]) == 0
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(starter_home.models / "smollm2-135m" / "mlx-f16"))
    chat = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert "Paris" in mlx_lm.generate(model, tokenizer, prompt=prompt, max_tokens=8)
