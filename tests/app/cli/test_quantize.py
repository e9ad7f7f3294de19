"""``localllm quantize``, by real jobs, on a tiny model."""

import json
import shlex

import pytest

from app.cli.main import main
from localllm.conversations import ConversationStore
from localllm.gguf_header import read_gguf_header
from localllm.jobs.store import JobStore
from localllm.models.names import ModelName
from localllm.models.store import ModelStore
from quant.fit.sensitivity import read_sensitivity
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.hf_models import write_hf_model
from tests.fakes.jobs import ROOT


@pytest.fixture
def tiny(home, tmp_path, monkeypatch, capsys):
    """A tiny llama in the store as ``tiny:f16``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_embd=256, n_ff=256, n_layer=1)
    assert main(["pull", str(path), "--as", "tiny:f16"]) == 0
    capsys.readouterr()
    return ModelStore(home)


def test_to_a_type_with_the_default_importance_matrix(tiny, home, capsys):
    assert main(["quantize", "tiny", "--to", "Q4_K", "--override", "ffn_down=q8_0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["variant"], record["quantization"], record["state"]) == ("q4_k_m", "Q4_K_M", "ready")
    assert record["parent"]["name"] == "tiny:f16"
    assert record["parent"]["how"] == (
        "quantize tiny:f16 --to q4_k_m --imatrix default --override 'ffn_down=q8_0' --as tiny:q4_k_m"
    )
    assert record["extra"]["recipe"] == {"to": "q4_k_m", "imatrix": "default", "overrides": ["ffn_down=q8_0"]}
    assert tiny.is_whole(tiny.get(ModelName("tiny", "q4_k_m")))
    assert [path.name.startswith("tiny-") for path in home.measured.iterdir()] == [True]

    n_jobs = len(JobStore(home).list())
    assert main(["quantize", "tiny:f16", "--to", "q4_k_m", "--override", "ffn_down=q8_0"]) == 0
    assert capsys.readouterr().out.endswith("already here\n")
    assert len(JobStore(home).list()) == n_jobs
    assert not list(home.partial.iterdir())


def test_a_hugging_face_directory_falls_back_and_says_so(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    assert main(["quantize", "tiny", "--to", "q4_k_m", "--imatrix", "none"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("tiny:q4_k_m")
    assert "another type than asked" in said.err


def test_a_dry_run_makes_nothing(tiny, home, capsys):
    before = len(JobStore(home).list())
    assert main(["quantize", "tiny", "--to", "q4_k_m", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "F16 -> Q4_K" in out
    assert "bits per weight" in out
    assert main(["quantize", "tiny", "--to", "q4_k_m", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(JobStore(home).list()) == before
    assert main(["quantize", "tiny", "--to", "q4_k_m"]) == 0
    assert abs(tiny.get(ModelName("tiny", "q4_k_m")).size - plan["n_bytes"]) < 1024


def test_importance_from_chats_is_not_kept(tiny, home, capsys):
    assert main(["quantize", "tiny", "--to", "q4_k_m", "--imatrix", "chats"]) == 1
    assert "no chats" in capsys.readouterr().err
    store = ConversationStore(home.database)
    conversation = store.create("x")
    asked = store.append(conversation.id, None, "user", "All about the rain in Spain. " * 60)
    store.append(conversation.id, asked.id, "assistant", "It stays mainly in the plain.")
    store.close()
    assert main(["quantize", "tiny", "--to", "q4_k_m", "--imatrix", "chats"]) == 0
    assert not home.measured.exists()
    assert b"rain" not in tiny.file(tiny.resolve("tiny:q4_k_m")).read_bytes()


def test_how_it_was_made_can_be_typed_again(tiny, tmp_path):
    text = tmp_path / "my text.txt"
    text.write_text("All about the rain in Spain. " * 60)
    words = ["quantize", "tiny:f16", "--to", "q4_0", "--imatrix", str(text), "--override", "ffn_(down|'x)=q8_0"]
    assert main(words) == 0
    how = tiny.resolve("tiny:q4_0").parent.how
    assert shlex.split(how) == [*words, "--as", "tiny:q4_0"]


def test_fit_plans_then_makes_it(tiny, home, capsys):
    assert main(["quantize", "tiny", "--fit", "80MB", "--ctx", "256", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [model.variant for model in tiny.list()] == ["f16"]
    kept = next(home.measured.glob("*-sensitivity.json"))
    written = kept.stat().st_mtime_ns
    assert main(["quantize", "tiny", "--fit", "80MB", "--ctx", "256"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("tiny:fit-80mb")
    assert "predicted KL" in said.err
    assert kept.stat().st_mtime_ns == written
    made = tiny.resolve("tiny:fit-80mb")
    assert made.extra["recipe"] == {"fit": 80_000_000, "ctx": 256, "imatrix": "default"}
    header = read_gguf_header(tiny.file(made))
    assert plan["types"] == {tensor.name: tensor.type_name for tensor in header.tensors if tensor.name in plan["types"]}
    assert main(["quantize", "tiny:f16", "--fit", "20MB", "--ctx", "256"]) == 1
    assert "context" in capsys.readouterr().err


def pull(path, name):
    assert main(["pull", str(path), "--as", name]) == 0


def types(store, name):
    header = read_gguf_header(store.file(store.resolve(name)))
    return {tensor.name: tensor.type_name for tensor in header.tensors}


def test_the_types_of_another_model_are_followed(tiny, tmp_path, capsys):
    pull(
        write_hf_model(tmp_path / "next", "llama", num_hidden_layers=1, hidden_size=256, intermediate_size=256),
        "next:hf",
    )
    rules = ["--override", "blk.0.ffn_down=q6_k", "--override", "attn_v=q8_0"]
    assert main(["quantize", "tiny", "--to", "q3_k_m", *rules, "--as", "tiny:mine"]) == 0
    capsys.readouterr()
    assert main(["quantize", "next", "--like", "tiny:mine", "--dry-run", "--json"]) == 0
    planned = {tensor["name"]: tensor["to_type"] for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    like = ["--like", "tiny:mine", "--imatrix", "none"]
    assert main(["quantize", "next", *like]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("next:mine")
    wanted = types(tiny, "tiny:mine")
    assert {"Q3_K", "Q6_K", "Q8_0"} < set(wanted.values())
    assert types(tiny, "next:mine") == planned == wanted
    assert main(["models", "show", "next:mine"]) == 0
    assert "to q3_k_m, imatrix none, like model tiny:mine, rules (9 of them)\n" in capsys.readouterr().out
    how = tiny.resolve("next:mine").parent.how
    assert shlex.split(how) == ["quantize", "next:hf", *like, "--as", "next:mine"]
    assert main(shlex.split(how)) == 0
    assert capsys.readouterr().out.endswith("already here\n")

    # A person's own rules count first.
    assert main(["quantize", "next", *like, "--override", "attn_q=q4_0", "--as", "next:own"]) == 0
    assert types(tiny, "next:own") == wanted | {"blk.0.attn_q.weight": "Q4_0"}


def test_a_model_of_another_shape_is_not_followed(tiny, tmp_path, capsys):
    pull(write_tiny_gguf(tmp_path / "deep.gguf", n_embd=256, n_ff=256, n_layer=2), "deep:f16")
    assert main(["quantize", "tiny", "--to", "q8_0"]) == 0
    assert main(["quantize", "deep", "--like", "tiny:q8_0"]) == 1
    assert "no blk.1." in capsys.readouterr().err
    assert main(["quantize", "deep", "--like", "tiny:f16"]) == 2
    assert "not quantized" in capsys.readouterr().err
    assert [model.variant for model in tiny.list() if model.name == "deep"] == ["f16"]


def test_what_was_measured_serves_the_next_of_the_family(tiny, home, tmp_path, capsys):
    pull(write_tiny_gguf(tmp_path / "next.gguf", n_embd=256, n_ff=256, n_layer=1, seed=1), "next:f16")
    fit = ["--fit", "80MB", "--ctx", "256"]
    assert main(["quantize", "next", *fit, "--like", "tiny"]) == 2
    assert "Nothing was measured of tiny:f16" in capsys.readouterr().err
    assert main(["quantize", "tiny", *fit, "--dry-run"]) == 0
    assert "--like" not in capsys.readouterr().err
    assert main(["quantize", "next", *fit, "--dry-run"]) == 0
    assert "with --like tiny:f16" in capsys.readouterr().err
    for kept in home.measured.glob("next-*-sensitivity.json"):
        kept.unlink()
    assert main(["quantize", "next", *fit, "--like", "tiny"]) == 0
    said = capsys.readouterr()
    assert "errors at" in said.err
    assert "divergence of" not in said.err
    measured, taken = sorted(home.measured.glob("*-sensitivity.json"), key=lambda path: path.stat().st_mtime)
    assert read_sensitivity(taken).scales == read_sensitivity(measured).scales
    assert read_sensitivity(taken).tensors != read_sensitivity(measured).tensors
    assert tiny.resolve("next:fit-80mb").parent.how.endswith("--like tiny:f16 --as next:fit-80mb")
    # It serves also by the name of what was made of the model that was measured.
    assert main(["quantize", "tiny:f16", "--to", "q8_0"]) == 0
    assert main(["quantize", "next:f16", *fit, "--like", "tiny:q8_0", "--as", "next:again"]) == 0
    assert tiny.resolve("next:again").parent.how.endswith("--like tiny:f16 --as next:again")
    # What was taken over was not measured of this model: nobody takes it over again.
    assert main(["quantize", "tiny", *fit, "--like", "next"]) == 2


def test_an_importance_matrix_that_was_edited_is_another_one(tiny, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("All about the rain in Spain. " * 60)
    words = ["quantize", "tiny:f16", "--to", "q4_0", "--imatrix", str(text)]
    assert main(words) == main(words) == 0
    assert capsys.readouterr().out.endswith("already here\n")
    text.write_text("It stays mainly in the plain. " * 60)
    assert main(words) == 1
    assert "taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "--to TYPE"),
        (["--like", "tiny", "--to", "q8_0"], 2, "Leave out --to"),
        (["--like", "nobody"], 1, "nobody"),
        (["--to", "q8_0", "--fit", "1GB"], 2, "either"),
        (["--fit", "much"], 2, "no size"),
        (["--fit", "1GB", "--override", "x=q8_0"], 2, "chooses the types itself"),
        (["--to", "q8_0", "--ctx", "5"], 2, "goes with --fit"),
        (["--to", "q9"], 2, "no type"),
        (["--to", "f16"], 2, "already"),
        (["--to", "mlx-7bit"], 2, "no type of MLX's"),
        (["--to", "q4_k_m", "--override", "ffn_down"], 2, "no rule"),
        (["--to", "q4_k_m", "--override", "(=q8_0"], 2, "regular expression"),
        (["--to", "q4_k_m", "--imatrix", "/nowhere/x.dat"], 2, "no file"),
        (["--to", "q4_k_m", "--as", "../x"], 2, "not a model name"),
        (["--to", "q4_k_m", "--as", "tiny:f16"], 1, "taken"),
    ],
)
def test_what_cannot_be_is_said_before_a_job_begins(tiny, home, capsys, words, code, said):
    before = len(JobStore(home).list())
    assert main(["quantize", "tiny", *words]) == code
    assert said in capsys.readouterr().err
    assert len(JobStore(home).list()) == before


def test_to_one_of_mlx_s_types(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["pull", str(write_hf_model(tmp_path / "tiny", "llama")), "--as", "tiny:hf"]) == 0
    assert main(["quantize", "tiny:hf", "--to", "MLX_4bit"]) == 0
    assert "tiny:mlx-4bit" in capsys.readouterr().out
    store = ModelStore(home)
    manifest = store.resolve("tiny:mlx-4bit")
    assert manifest.parent.how == "quantize tiny:hf --to mlx-4bit --imatrix none --as tiny:mlx-4bit"
    config = json.loads((store.file(manifest).parent / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    for words in (["--override", "ffn=q8_0"], ["--imatrix", "chats"], ["--dry-run"]):
        assert main(["quantize", "tiny:hf", "--to", "mlx-8bit", *words]) == 2
