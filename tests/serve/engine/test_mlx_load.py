"""Directories that the MLX engine refuses to load, or loads without running what is in them."""

import contextlib
import json

import pytest

from localllm.errors import EngineLoadError
from serve.engine.process import start_engine
from serve.engine.types import EngineSpec
from tests.fakes.mlx_models import make_model


@pytest.fixture
async def start(tmp_path):
    engines = []

    async def start(path, **fields):
        spec = EngineSpec(path=str(path), engine="mlx", n_threads=1, **fields)
        engines.append(await start_engine(spec, log_path=tmp_path / "engine.log"))

    yield start
    for engine in engines:
        await engine.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"model_file": "evil.py"}, "program of its own"),
        ({"hidden_size": 32}, "cannot"),
        ({"num_hidden_layers": 3}, "cannot load"),
        ({"model_type": None}, "model_type"),
    ],
)
async def test_a_directory_that_is_no_model_is_refused(start, tmp_path, config, message):
    path = make_model(tmp_path / "bad", **config)
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EngineLoadError, match=message):
        await start(path)
    assert not (tmp_path / "ran").exists()


async def test_a_tokenizer_with_a_program_is_not_run(start, tmp_path):
    path = make_model(tmp_path / "bad")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass")
    with contextlib.suppress(EngineLoadError):  # or it is read as what it is but for the program
        await start(path)
    assert not (tmp_path / "ran").exists()


async def test_missing_and_damaged_files_are_refused(start, tmp_path):
    with pytest.raises(EngineLoadError, match="no directory"):
        await start(tmp_path / "nothing")
    path = make_model(tmp_path / "bad")
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(EngineLoadError, match="tokenizer"):
        await start(path)
    path = make_model(tmp_path / "worse")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(EngineLoadError, match="cannot load"):
        await start(path)
    with pytest.raises(EngineLoadError, match="adapter"):
        await start(make_model(tmp_path / "good"), adapter=str(tmp_path / "no-adapter"))
