"""``localllm models fit``: the models here, and the usual sizes, against this machine's memory."""

import json

import pytest

from app.cli.main import main
from localllm import memory
from localllm.memory import MachineMemory
from localllm.models.manifest import Manifest, ModelFile, write_manifest
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.mlx_models import N_CTX, make_model

GB = 1_000_000_000


@pytest.fixture(autouse=True)
def laptop(monkeypatch):
    """A machine of 16 GB."""
    monkeypatch.setattr(
        memory, "machine_memory", lambda limit_gb=0: MachineMemory(16 * GB, 9 * GB, int(limit_gb * 1e9) or 10 * GB)
    )


def add_model(home, name="tiny", model_format="gguf", **options):
    directory = home.models / name / "f16"
    directory.mkdir(parents=True)
    path = write_tiny_gguf(directory / "model.gguf", **options)
    files = (ModelFile("model.gguf", path.stat().st_size, "0" * 64),)
    write_manifest(directory, Manifest(name, "f16", f"file:{name}", model_format, files))
    return path


def fit_json(capsys, *arguments):
    assert main(["models", "fit", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_new_machine_sees_what_would_fit(home, capsys):
    assert main(["models", "fit"]) == 0
    out = capsys.readouterr().out
    assert "16.0 GB of memory; models may use 10.0 GB of it; 9.0 GB is free now" in out
    (seven,) = [line.split() for line in out.splitlines() if line.strip().startswith("7B")]
    assert seven == ["7B", "Mistral", "7B", "5.7", "GB", "yes", "9.0", "GB", "yes", "15.8", "GB", "no"]
    assert "NAME" not in out


def test_the_models_here(home, capsys):
    add_model(home)
    add_model(home, "wide", n_ctx_train=4096)
    assert main(["models", "fit"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if ":f16" in line]
    assert [row[0] for row in rows] == ["tiny:f16", "wide:f16"]
    assert [row[-1] for row in rows] == ["256", "4096"]
    assert all("yes" in row for row in rows)


def test_one_model_at_a_context(home, capsys):
    add_model(home, n_ctx_train=4096)
    add_model(home, "other")
    (model,) = fit_json(capsys, "tiny", "--ctx", "1024")["models"]
    assert (model["name"], model["n_ctx"], model["fits"], model["largest_context"]) == ("tiny:f16", 1024, True, 4096)
    assert model["kv_cache"] == 2 * 2 * 16 * 2 * 1024
    assert model["total"] == model["weights"] + model["kv_cache"] + model["compute"]


def test_the_settings_count(home, capsys):
    add_model(home, n_ctx_train=4096)
    home.settings_file.write_text("ctx = 512\nmemory_gb = 0.01\n")
    report = fit_json(capsys)
    assert report["machine"]["budget"] == 10_000_000
    assert (report["models"][0]["n_ctx"], report["models"][0]["fits"]) == (512, False)
    assert report["models"][0]["largest_context"] == 0
    assert main(["models", "fit"]) == 0
    assert "none" in capsys.readouterr().out


def test_a_damaged_model_is_named(home, capsys):
    add_model(home)
    path = add_model(home, "cut")
    path.write_bytes(path.read_bytes()[:5000])
    assert main(["models", "fit"]) == 0
    captured = capsys.readouterr()
    assert "tiny:f16" in captured.out
    assert "cut:f16: model.gguf is not a valid GGUF file" in captured.err


def test_a_directory_of_safetensors_is_measured_too(home, capsys, tmp_path):
    pull(str(make_model(tmp_path / "tuned")), ModelStore(home))
    (model,) = fit_json(capsys)["models"]
    assert (model["name"], model["n_ctx"], model["fits"]) == ("tuned:f32", N_CTX, True)


def test_an_unknown_model(home, capsys):
    assert main(["models", "fit", "nothing"]) == 1
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_wrong_context_is_wrong_usage(home, capsys, value):
    assert main(["models", "fit", "--ctx", value]) == 2
    assert "--ctx" in capsys.readouterr().err
