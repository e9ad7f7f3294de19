"""What a directory of safetensors needs in memory."""

import platform

import pytest

from localllm.errors import InvalidModelError, MemoryFitError
from localllm.gguf_header import read_gguf_header
from localllm.memory import MachineMemory, fit, model_shape, require_fit
from localllm.memory_safetensors import files_shape, mlx_uses_gpu, safetensors_shape
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.mlx_models import N_CTX, N_EMBD, N_VOCAB, make_model


def paths_of(directory):
    return [directory / "config.json", *sorted(directory.glob("*.safetensors"))]


@pytest.fixture
def paths(tmp_path):
    return paths_of(make_model(tmp_path / "tiny"))


def test_the_numbers_of_the_model(paths):
    shape = safetensors_shape(paths, on_gpu=True)
    assert (shape.n_vocab, shape.n_embd, shape.n_ff, shape.n_ctx_train) == (N_VOCAB, N_EMBD, 128, N_CTX)
    assert shape.kv_per_token == 2 * 2 * 2 * 16  # keys and values, two layers, two heads of 16
    assert 0.98 < shape.weights / paths[1].stat().st_size < 1


def test_keys_and_values_of_every_token_count(paths):
    on_gpu, on_cpu = (safetensors_shape(paths, on_gpu=gpu) for gpu in (True, False))
    assert on_gpu.need(1000).kv_cache == on_gpu.kv_per_token * 2 * 1024, "16 bits, in steps of 256"
    assert on_cpu.need(1000).kv_cache == on_cpu.kv_per_token * 4 * 1024, "the CPU computes in float32"
    assert on_cpu.scratch(1024) > on_gpu.scratch(1024), "and writes its attention scores down"


def test_half_precision_weights_double_on_the_cpu(tmp_path):
    paths = paths_of(make_model(tmp_path / "half", dtype="float16"))
    assert safetensors_shape(paths, on_gpu=False).weights == 2 * safetensors_shape(paths, on_gpu=True).weights


def test_a_model_inside_a_larger_one(tmp_path):
    inner = {"num_hidden_layers": 7, "max_position_embeddings": 99}
    shape = safetensors_shape(paths_of(make_model(tmp_path / "tiny", text_config=inner)), on_gpu=True)
    assert (shape.kv_per_token, shape.n_ctx_train) == (2 * 7 * 2 * 16, 99)


def test_numbers_that_are_none_count_nothing(tmp_path):
    paths = paths_of(make_model(tmp_path / "odd", hidden_size="64", num_attention_heads=None, num_hidden_layers=-3))
    assert safetensors_shape(paths, on_gpu=True).need(512).kv_cache == 0


def test_it_fits_or_not_with_both_numbers(paths):
    shape = files_shape(paths)
    plenty = MachineMemory(8 << 30, 8 << 30, 8 << 30)
    assert fit(shape, plenty).n_ctx == N_CTX
    with pytest.raises(MemoryFitError, match=r"needs 0\.\d\d GB .* 0\.10 GB"):
        require_fit(shape, MachineMemory(1 << 30, 1 << 30, 100_000_000))


def test_the_first_file_tells_the_engine(paths, tmp_path):
    gguf = write_tiny_gguf(tmp_path / "model.gguf")
    assert files_shape([gguf]) == model_shape(read_gguf_header(gguf))
    assert files_shape(paths) == safetensors_shape(paths, on_gpu=mlx_uses_gpu())


def test_the_gpu_is_apples(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert mlx_uses_gpu()
    assert not mlx_uses_gpu(gpu_layers=0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not mlx_uses_gpu()


def test_a_damaged_file_is_named(paths):
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    with pytest.raises(InvalidModelError, match=r"model\.safetensors is damaged"):
        safetensors_shape(paths, on_gpu=True)
    paths[0].write_text("[]")
    with pytest.raises(InvalidModelError, match="no settings"):
        safetensors_shape(paths, on_gpu=True)
