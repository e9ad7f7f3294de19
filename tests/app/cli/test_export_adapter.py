"""``localllm models export BASE+ADAPTER``, by real jobs, on a tiny model."""

import json

import pytest

from app.cli.main import main
from finetune.export_job import parse_fused_form
from localllm.adapters import AdapterStore
from localllm.errors import UsageError
from localllm.models.names import ModelName
from localllm.models.store import ModelStore
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT
from tests.fakes.loras import write_lora


@pytest.fixture
def trained(home, tmp_path, monkeypatch, capsys):
    """A tiny model and its adapter, in the stores."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    base = write_hf_model(tmp_path / "tiny", "llama")
    assert main(["pull", str(base), "--as", "tiny:hf"]) == 0
    AdapterStore(home).install(write_lora(tmp_path / "mine", base, ("self_attn.q_proj",)), base="tiny")
    capsys.readouterr()
    return ModelStore(home)


def test_a_fused_model_with_its_lineage_and_its_verdict(trained, home, capsys):
    assert main(["models", "export", "tiny+mine", "--to", "gguf:f32", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (record["name"], record["variant"], record["format"]) == ("tiny-mine", "f32", "gguf")
    assert record["parent"]["name"] == "tiny:hf"
    assert record["extra"]["recipe"]["adapter"] == "mine"
    assert "built-in chats" in err
    assert "gguf:f32" in err
    assert main(["models", "export", "tiny+mine", "--to", "gguf:f32"]) == 0
    assert capsys.readouterr().out.endswith("already here\n")
    assert not list(home.partial.iterdir())


def test_what_predicts_something_else_is_not_kept(trained, home, capsys):
    # Two bits are too few for random weights.
    assert main(["models", "export", "tiny+mine", "--to", "tq1_0"]) == 1
    assert "does not predict" in capsys.readouterr().err
    assert trained.get(ModelName("tiny-mine", "tq1_0")) is None
    assert not list(home.partial.iterdir())
    assert main(["models", "export", "tiny+mine", "--to", "tq1_0", "--ignore-gate"]) == 0
    assert trained.get(ModelName("tiny-mine", "tq1_0")) is not None


@pytest.mark.parametrize(
    ("name", "form", "code", "said"),
    [
        ("tiny+mine", "zip", 2, "no type"),
        ("tiny+mine", "mlx:q4_0", 2, "no type"),
        ("tiny+mine+mine", "mlx", 2, "One adapter"),
        ("tiny+mine", "mlx:4bit", 2, "not packed"),
        ("tiny+other", "mlx", 1, "no adapter"),
    ],
)
def test_wrong_words(trained, capsys, name, form, code, said):
    assert main(["models", "export", name, "--to", form]) == code
    assert said in capsys.readouterr().err


def test_forms():
    assert str(parse_fused_form("Q4_K_M")) == "gguf:q4_k_m"
    assert str(parse_fused_form("mlx")) == "mlx:f16"
    assert str(parse_fused_form("mlx:4bit")) == "mlx:4bit"
    with pytest.raises(UsageError):
        parse_fused_form("hf:4bit")


def test_packed_weights_are_packed_again_as_they_were_and_called_nothing_else(trained, capsys):
    assert main(["quantize", "tiny:hf", "--to", "mlx-4bit"]) == 0
    assert main(["models", "export", "tiny:mlx-4bit+mine", "--to", "mlx:8bit", "--ignore-gate"]) == 2
    assert "are of 4bit, not of 8bit" in capsys.readouterr().err
    assert main(["models", "export", "tiny:mlx-4bit+mine", "--to", "mlx:4bit", "--ignore-gate"]) == 0
    assert trained.get(ModelName("tiny-mine", "mlx-4bit")).quantization == "4-bit"
