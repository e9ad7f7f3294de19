"""Conversions as a person meets them: types, splits, progress, cancel, full disks, two at once, memory."""

import errno
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localllm.errors import DiskFullError, InvalidModelError, LocalLLMError, StoreError
from localllm.gguf_header import read_gguf_header
from quant.convert import from_gguf, to_gguf
from quant.tensors.gguf_reader import GGUFSource, read_metadata
from quant.tensors.safetensors import SafetensorsSource
from tests.fakes.hf_models import CONFIGS, N_VOCAB, write_hf_model
from tests.fakes.mlx_models import TEMPLATE

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def directory(tmp_path):
    return write_hf_model(tmp_path / "tiny", "llama")


@pytest.fixture
def gguf(tmp_path, directory):
    return to_gguf(directory, tmp_path / "tiny.gguf", type="f32")[0]


def left_in(path):
    return sorted(child.name for child in path.iterdir())


@pytest.mark.parametrize(("kind", "matrix"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_matrices_have_the_type_and_vectors_stay_f32(tmp_path, directory, kind, matrix):
    to_gguf(directory, tmp_path / "m.gguf", type=kind)
    header = read_gguf_header(tmp_path / "m.gguf")
    assert {tensor.type_name for tensor in header.tensors if len(tensor.shape) > 1} == {matrix}
    assert {tensor.type_name for tensor in header.tensors if len(tensor.shape) == 1} == {"F32"}
    assert header.quantization == matrix


@pytest.mark.parametrize(("dtype", "own"), [("float32", "F32"), ("float16", "F16")])
def test_auto_keeps_the_model_s_own_type(tmp_path, dtype, own):
    to_gguf(write_hf_model(tmp_path / "tiny", "qwen3", dtype=dtype), tmp_path / "m.gguf")
    assert read_gguf_header(tmp_path / "m.gguf").quantization == own


def test_rows_that_do_not_fill_blocks_become_f16(tmp_path):
    to_gguf(write_hf_model(tmp_path / "t", "llama", intermediate_size=72), tmp_path / "m.gguf", type="q8_0")
    types = {tensor.name: tensor.type_name for tensor in read_gguf_header(tmp_path / "m.gguf").tensors}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_the_router_stays_f32(tmp_path):
    to_gguf(write_hf_model(tmp_path / "t", "mixtral"), tmp_path / "m.gguf", type="f16")
    types = {tensor.name: tensor.type_name for tensor in read_gguf_header(tmp_path / "m.gguf").tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_gate_exps.weight"] == "F16"


def test_what_the_file_says_about_itself(gguf):
    metadata = read_metadata(gguf)
    assert metadata["general.name"] == "tiny"
    assert metadata["llama.vocab_size"] == N_VOCAB == len(metadata["tokenizer.ggml.tokens"])
    assert metadata["tokenizer.chat_template"] == TEMPLATE


def test_what_the_directory_says_about_itself(tmp_path, gguf):
    from_gguf(gguf, tmp_path / "back", dtype="bf16")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["torch_dtype"], config["vocab_size"], config["tie_word_embeddings"]) == ("bfloat16", N_VOCAB, False)
    assert config["eos_token_id"] == read_metadata(gguf)["tokenizer.ggml.eos_token_id"]
    assert (tmp_path / "back" / "tokenizer.json").is_file()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o700
    with SafetensorsSource(tmp_path / "back") as source:
        assert {tensor.type_name for tensor in source.tensors.values()} == {"BF16"}


def test_parts_of_both_forms(tmp_path, directory, gguf):
    parts = to_gguf(directory, tmp_path / "split.gguf", type="f32", split_bytes=100_000)
    assert len(parts) > 2
    from_gguf(parts[0], tmp_path / "back", dtype="f32", shard_bytes=100_000)
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()
    again = to_gguf(tmp_path / "back", tmp_path / "again.gguf", type="f32")[0]
    with GGUFSource(gguf) as one, GGUFSource(again) as other:
        assert dict(one.tensors) == dict(other.tensors)
        assert all(
            np.array_equal(one.read_rows(name, 0, info.n_rows), other.read_rows(name, 0, info.n_rows))
            for name, info in one.tensors.items()
        )


def test_a_hundred_shards_are_one_model(tmp_path):
    directory = write_hf_model(tmp_path / "deep", "llama", num_hidden_layers=12)
    to_gguf(directory, tmp_path / "one.gguf")
    arrays = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-{part + 1:05d}-of-{len(arrays):05d}.safetensors" for part, name in enumerate(arrays)}
    for name, file in weight_map.items():
        save_file({name: arrays[name]}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert len(weight_map) > 100
    to_gguf(directory, tmp_path / "many.gguf", name="deep")
    assert (tmp_path / "many.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    (directory / weight_map["model.norm.weight"]).unlink()
    with pytest.raises(InvalidModelError, match=f"1 of {len(weight_map)} files"):
        to_gguf(directory, tmp_path / "lacking.gguf")
    assert left_in(tmp_path) == ["deep", "many.gguf", "one.gguf"]


def test_an_embedder_comes_back_with_its_pooling(tmp_path):
    to_gguf(write_hf_model(tmp_path / "e", "bert"), tmp_path / "e.gguf", type="f32")
    assert read_metadata(tmp_path / "e.gguf")["bert.pooling_type"] == 1
    from_gguf(tmp_path / "e.gguf", tmp_path / "back", dtype="f32")
    to_gguf(tmp_path / "back", tmp_path / "again.gguf", type="f32")
    assert read_metadata(tmp_path / "again.gguf")["bert.pooling_type"] == 1


def test_an_embedder_of_unknown_pooling_is_refused(tmp_path):
    directory = write_hf_model(tmp_path / "e", "bert")
    (directory / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InvalidModelError, match="pooling is not known"):
        to_gguf(directory, tmp_path / "e.gguf")
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(InvalidModelError, match="pools in a way"):
        to_gguf(directory, tmp_path / "e.gguf")


def test_progress_reaches_the_end(tmp_path, directory, gguf):
    for convert in (
        lambda told: to_gguf(directory, tmp_path / "p.gguf", progress=told),
        lambda told: from_gguf(gguf, tmp_path / "p", progress=told),
    ):
        seen = []
        convert(lambda *step, seen=seen: seen.append(step))
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert seen[-1][1] == seen[-1][2]


class CancelledError(LocalLLMError):
    """Raised by the caller's check."""


def cancel_at(count):
    calls = iter(range(count))

    def check():
        if next(calls, None) is None:
            raise CancelledError("cancelled")

    return check


@pytest.mark.parametrize("count", [0, 1, 7])
def test_cancel_leaves_nothing(tmp_path, directory, gguf, count):
    before = left_in(tmp_path)
    with pytest.raises(CancelledError):
        to_gguf(directory, tmp_path / "c.gguf", split_bytes=50_000, check_cancelled=cancel_at(count))
    with pytest.raises(CancelledError):
        from_gguf(gguf, tmp_path / "c", shard_bytes=50_000, check_cancelled=cancel_at(count))
    assert left_in(tmp_path) == before


def test_a_full_disk_half_way_leaves_nothing(tmp_path, directory, gguf):
    before = left_in(tmp_path)

    def full(name, done, total):
        if done > total // 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError):
        to_gguf(directory, tmp_path / "c.gguf", progress=full)
    with pytest.raises(DiskFullError):
        from_gguf(gguf, tmp_path / "c", progress=full)
    assert left_in(tmp_path) == before


def test_two_at_once_leave_one_whole_model(tmp_path, directory, gguf):
    def make(_):
        return to_gguf(directory, tmp_path / "both.gguf", type="f32")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, range(4)))
        results = list(pool.map(lambda _: _outcome(gguf, tmp_path / "both"), range(4)))
    assert results.count("done") == 1
    assert (tmp_path / "both.gguf").read_bytes() == gguf.read_bytes()
    assert left_in(tmp_path) == ["both", "both.gguf", "tiny", "tiny.gguf"]
    assert not [name for name in left_in(tmp_path / "both") if name.startswith(".")]


def _outcome(gguf, target):
    try:
        from_gguf(gguf, target, dtype="f32")
    except StoreError:
        return "taken"
    return "done"


def test_a_directory_that_holds_something_is_left_alone(tmp_path, gguf):
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        from_gguf(gguf, tmp_path / "back")
    assert left_in(tmp_path / "back") == ["mine.txt"]


def test_rotary_settings_that_cannot_be_computed_with_are_refused(tmp_path):
    scaling = CONFIGS["llama3"]["rope_scaling"] | {"low_freq_factor": 0}
    directory = write_hf_model(tmp_path / "t", "llama3", rope_scaling=scaling)
    with pytest.raises(InvalidModelError, match=r"config\.json holds impossible settings"):
        to_gguf(directory, tmp_path / "t.gguf")
    assert left_in(tmp_path) == ["t"]


@pytest.mark.parametrize("kind", ["q4_k_m", "", "F64"])
def test_types_that_are_none_of_ours(tmp_path, directory, gguf, kind):
    with pytest.raises(InvalidModelError, match="no type to convert to"):
        to_gguf(directory, tmp_path / "x.gguf", type=kind)
    with pytest.raises(InvalidModelError, match="no type to convert to"):
        from_gguf(gguf, tmp_path / "x", dtype=kind)


def test_a_tied_output_that_is_stored_all_the_same_is_left_out(tmp_path):
    directory = write_hf_model(tmp_path / "t", "llama", tie_word_embeddings=True)
    with SafetensorsSource(write_hf_model(tmp_path / "u", "llama")) as source:
        arrays = {
            name: source.read_rows(name, 0, info.n_rows).reshape(info.shape).copy()
            for name, info in source.tensors.items()
        }
    save_file(arrays, directory / "model.safetensors")
    to_gguf(directory, tmp_path / "t.gguf")
    names = {tensor.name for tensor in read_gguf_header(tmp_path / "t.gguf").tensors}
    assert "lm_head.weight" in arrays
    assert "output.weight" not in names


# One matrix of 64 MB in F32: 16,384 rows of 1,024.
_MEASURE = """
import resource, sys
from pathlib import Path
import gguf  # what it costs to import is no tensor
from quant.convert import from_gguf, to_gguf
def peak():  # bytes; macOS counts in bytes, Linux in kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
source, scratch = Path(sys.argv[1]), Path(sys.argv[2])
small = source.parent / "small"
to_gguf(small, scratch / "s.gguf", type=sys.argv[3])
from_gguf(scratch / "s.gguf", scratch / "s", dtype="f32")
before = peak()
to_gguf(source, scratch / "m.gguf", type=sys.argv[3])
from_gguf(scratch / "m.gguf", scratch / "m", dtype="f32")
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_memory_does_not_grow_with_the_largest_tensor(tmp_path, kind):
    write_hf_model(tmp_path / "small", "llama")
    settings = CONFIGS["llama"] | {"hidden_size": 1024, "intermediate_size": 16384, "num_hidden_layers": 1}
    write_hf_model(tmp_path / "large", "llama", **settings)
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "large"), str(tmp_path), kind],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    # The bar is 1.5 times the tensor; reading by rows needs less than half of it.
    assert int(ran.stdout) < 32 << 20
