"""MLX's types, small: what is made loads in mlx-lm and computes what mlx-lm's own quantization computes."""

import json

import mlx.core as mx
import numpy as np
import pytest

from localllm.errors import InvalidModelError, LocalLLMError, StoreError, UsageError
from quant.convert import to_gguf
from quant.mlx_learned import Samples
from quant.mlx_quantize import quantize_mlx
from quant.mlx_types import MLX_TYPES
from tests.fakes.hf_models import write_hf_model

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 384, 32)]
TEXTS = ("the cat sat on the mat and looked at the moon " * 40,)
PLAIN = [name for name, kind in MLX_TYPES.items() if not kind.learned]


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture
def directory(tmp_path):
    return write_hf_model(tmp_path / "hf", "llama", num_hidden_layers=4)


def logits(directory):
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    return np.array(model(mx.array([TOKENS]))[0])


def theirs(directory, kind):
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import load_model, quantize_model

    model, config = load_model(directory)
    predicate = mixed_quant_predicate_builder(kind.mixed, model, kind.group_size) if kind.mixed else None
    model, _ = quantize_model(model, config, kind.group_size, kind.bits, mode=kind.mode, quant_predicate=predicate)
    return np.array(model(mx.array([TOKENS]))[0])


@pytest.mark.parametrize("name", PLAIN)
def test_as_mlx_lm_does_it(tmp_path, directory, name, capfd):
    write_hf_model(directory, "llama", num_hidden_layers=4, intermediate_size=128)
    seen, notices = [], []
    quantize_mlx(directory, tmp_path / "out", name, progress=lambda *step: seen.append(step), notice=notices.append)
    assert capfd.readouterr() == ("", "")
    assert notices == []
    assert seen[-1][1] == seen[-1][2]
    assert np.array_equal(logits(tmp_path / "out"), theirs(directory, MLX_TYPES[name]))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_other_groups_and_rows_that_do_not_fill_them(tmp_path, directory):
    notices = []
    quantize_mlx(directory, tmp_path / "out", "mlx-4bit", notice=notices.append)  # 96 is no multiple of 64
    assert len(notices) == 4
    assert "model.layers.0.mlp.down_proj has rows of 96" in min(notices)
    notices.clear()
    quantize_mlx(directory, tmp_path / "small", "mlx-4bit", group_size=32, notice=notices.append)
    assert notices == []
    with pytest.raises(UsageError, match="Groups of 48"):
        quantize_mlx(directory, tmp_path / "x", "mlx-4bit", group_size=48)
    with pytest.raises(UsageError, match="Groups of 64"):
        quantize_mlx(directory, tmp_path / "x", "mxfp4", group_size=64)


def test_from_gguf_and_from_a_quantized_model(tmp_path, directory):
    notices = []
    gguf = to_gguf(directory, tmp_path / "model.gguf", type="f16")[0]
    quantize_mlx(gguf, tmp_path / "eight", "mlx-8bit", group_size=32)
    assert (logits(tmp_path / "eight").argmax(-1) == logits(directory).argmax(-1)).mean() > 0.9
    quantize_mlx(tmp_path / "eight", tmp_path / "four", "mlx-4bit", group_size=32, notice=notices.append)
    assert notices == ["The model is quantized already: its weights are unpacked first, which keeps their errors."]
    assert json.loads((tmp_path / "four" / "config.json").read_text())["quantization"]["bits"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eight", "four", "hf", "model.gguf"]


@pytest.mark.parametrize("name", ["mlx-awq", "mlx-dwq"])
def test_what_is_fitted_to_text_loads_and_is_quiet(tmp_path, name, capfd):
    directory = write_hf_model(tmp_path / "hf", "llama", intermediate_size=128)
    seen = []
    samples = Samples(TEXTS, count=6, length=32)
    quantize_mlx(directory, tmp_path / "out", name, samples=samples, progress=lambda *step: seen.append(step))
    assert capfd.readouterr() == ("", "")
    assert {stage for stage, _, _ in seen} >= {"blocks" if name == "mlx-awq" else "distil"}
    found, reference = logits(tmp_path / "out"), logits(directory)
    quantize_mlx(directory, tmp_path / "rounded", "mlx-4bit")
    # Random weights have no outliers that fitting could help with: it must not be much worse than rounding.
    assert np.abs(found - reference).mean() < 1.3 * np.abs(logits(tmp_path / "rounded") - reference).mean()
    with pytest.raises(UsageError, match="Give more text"):
        quantize_mlx(directory, tmp_path / "x", name, samples=Samples(("too short",)))


class CancelledError(LocalLLMError):
    """Raised by the caller's check."""


@pytest.mark.parametrize("name", ["mlx-4bit", "mlx-awq", "mlx-dwq"])
def test_cancel_leaves_nothing(tmp_path, name):
    directory = write_hf_model(tmp_path / "hf", "llama", intermediate_size=128)
    calls = iter(range(1))

    def check():
        if next(calls, None) is None:
            raise CancelledError("cancelled")

    samples = Samples(TEXTS, count=6, length=32)
    with pytest.raises(CancelledError):
        quantize_mlx(directory, tmp_path / "out", name, samples=samples, check_cancelled=check)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_damaged_weights_are_named_as_elsewhere(tmp_path, directory):
    weights = directory / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-100])
    with pytest.raises(InvalidModelError, match=r"100 of its \d+ bytes are missing"):
        quantize_mlx(directory, tmp_path / "out", "mlx-4bit")
    weights.rename(directory / "model-00001-of-00002.safetensors")
    with pytest.raises(InvalidModelError, match="1 of 2 files of the model are missing"):
        quantize_mlx(directory, tmp_path / "out", "mlx-4bit")
    (directory / "model-00001-of-00002.safetensors").rename(weights)
    weights.write_bytes(raw)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "no_such"}))
    with pytest.raises(InvalidModelError, match="no_such not supported") as caught:
        quantize_mlx(directory, tmp_path / "out", "mlx-4bit")
    assert caught.value.message.endswith("supported.")
    assert not caught.value.message.endswith("..")


def test_what_is_refused(tmp_path, directory):
    with pytest.raises(UsageError, match="is no type of MLX's"):
        quantize_mlx(directory, tmp_path / "x", "mlx-7bit")
    with pytest.raises(StoreError, match="is there already"):
        quantize_mlx(directory, directory, "mlx-4bit")
    samples = Samples(TEXTS, count=2, length=32)
    with pytest.raises(InvalidModelError, match="do not fill groups"):
        quantize_mlx(directory, tmp_path / "x", "mlx-awq", samples=samples)
    falcon = write_hf_model(tmp_path / "falcon", "falcon")
    with pytest.raises(InvalidModelError, match="falcon"):
        quantize_mlx(falcon, tmp_path / "x", "mlx-4bit")
    phi = write_hf_model(tmp_path / "phi", "phi2")
    with pytest.raises(InvalidModelError, match="AWQ is not made for phi"):
        quantize_mlx(phi, tmp_path / "x", "mlx-awq", samples=samples)
    with pytest.raises(InvalidModelError, match="no down projections"):
        quantize_mlx(phi, tmp_path / "x", "mlx-mixed")
    (directory / "config.json").write_text(
        json.dumps(json.loads((directory / "config.json").read_text()) | {"model_file": "evil.py"})
    )
    with pytest.raises(InvalidModelError, match="evil"):
        quantize_mlx(directory, tmp_path / "x", "mlx-4bit")
