"""GGUF files: what is written is what llama.cpp's own package reads, and the other way round."""

import errno

import gguf
import numpy as np
import pytest

from localllm.errors import DiskFullError, InvalidModelError
from localllm.gguf_header import read_gguf_header, read_gguf_parts
from quant.tensors.gguf_reader import GGUFSource, read_metadata
from quant.tensors.gguf_writer import write_gguf
from quant.tensors.rows import OutTensor, array_tensor
from quant.tensors.source import TensorInfo
from tests.fakes.gguf_files import write_tiny_gguf

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.big": 1 << 40,
    "llama.negative": -3,
    "llama.epsilon": 1e-5,
    "llama.flag": True,
    "tokenizer.ggml.tokens": ["<s>", "naïve", "▁the", ""],
    "tokenizer.ggml.scores": [0.0, -1.5, -2.0, -3.0],
    "tokenizer.ggml.token_type": [3, 1, 1, 5],
    "tokenizer.flags": [True, False],
    "tokenizer.empty": [],
}
ARRAYS = {
    "token_embd.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "blk.0.stack.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "blk.0.norm.weight": np.arange(5, dtype=np.float32),
}
TENSORS = [array_tensor(name, array) for name, array in ARRAYS.items()]


def nobody(*_):
    pass


def test_gguf_py_reads_what_is_written(tmp_path):
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, on_tensor=nobody)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {field.name for field in reader.fields.values()} >= METADATA.keys()
    for key in METADATA:
        value = reader.get_field(key).contents()
        assert value == pytest.approx(METADATA[key]) if isinstance(value, float) else value == METADATA[key]
    assert reader.get_field("llama.block_count").types == [gguf.GGUFValueType.UINT32]
    assert reader.get_field("tokenizer.ggml.token_type").types[1] == gguf.GGUFValueType.INT32
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data.reshape(ARRAYS[tensor.name].shape), ARRAYS[tensor.name])


def test_metadata_comes_back(tmp_path):
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, on_tensor=nobody)
    found = read_metadata(tmp_path / "m.gguf")
    assert found.pop("llama.epsilon") == pytest.approx(1e-5)
    assert found == {key: value for key, value in METADATA.items() if key != "llama.epsilon"}


def test_a_large_vocabulary_comes_back(tmp_path):
    tokens = [f"token {n} ▁ü" for n in range(20_000)]
    scores = [-float(n) for n in range(20_000)]
    write_gguf(tmp_path / "m.gguf", METADATA | {"t.tokens": tokens, "t.scores": scores}, TENSORS, on_tensor=nobody)
    found = read_metadata(tmp_path / "m.gguf")
    assert (found["t.tokens"], found["t.scores"]) == (tokens, scores)


def test_every_packed_type_of_gguf_py_is_read_by_rows(tmp_path):
    kind = gguf.GGMLQuantizationType.Q4_1
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=kind)
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    with GGUFSource(path) as source:
        info = source.tensors["blk.1.ffn_up.weight"]
        assert (info.type_name, info.shape, info.is_packed) == ("Q4_1", (64, 32), True)
        assert np.array_equal(source.read_rows(info.name, 3, 9), expected[info.name][3:9])


@pytest.mark.parametrize("limit", [1, 100, 200])
def test_parts_hold_the_same_model(tmp_path, limit):
    files = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, split_bytes=limit, on_tensor=nobody)
    assert [path.name for path in files] == [f"m-{n + 1:05d}-of-{len(files):05d}.gguf" for n in range(len(files))]
    assert len(files) == {1: 3, 100: 3, 200: 2}[limit]
    header = read_gguf_parts(files)
    assert {tensor.name for tensor in header.tensors} == set(ARRAYS)
    with GGUFSource(files[-1]) as source:  # from any part
        for name, array in ARRAYS.items():
            rows = source.read_rows(name, 0, source.tensors[name].n_rows)
            assert np.array_equal(rows.reshape(array.shape), array)
        assert source.architecture == "llama"
        assert not any(key.startswith("split.") for key in source.metadata)


def test_a_missing_part_is_named(tmp_path):
    files = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, split_bytes=1, on_tensor=nobody)
    files[1].unlink()
    with pytest.raises(InvalidModelError, match="part 2 is missing"):
        GGUFSource(files[0])


def test_a_cut_file_is_refused(tmp_path):
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, on_tensor=nobody)
    raw = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(raw[:-40])
    with pytest.raises(InvalidModelError, match="missing"):
        GGUFSource(tmp_path / "m.gguf")


@pytest.mark.parametrize("split", [0, 1])
def test_a_full_disk_leaves_nothing_and_what_was_there(tmp_path, split):
    (tmp_path / "m.gguf").write_bytes(b"the one before")

    def full(name, n_bytes):
        if name == "blk.0.norm.weight":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError):
        write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, split_bytes=split, on_tensor=full)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"the one before"


def test_a_model_larger_than_the_disk_is_refused_at_once(tmp_path):
    huge = OutTensor(TensorInfo("token_embd.weight", "F32", (1 << 24, 1 << 20)), lambda: iter(()))
    with pytest.raises(DiskFullError, match="are needed"):
        write_gguf(tmp_path / "m.gguf", METADATA, [huge], on_tensor=nobody)
    assert not list(tmp_path.iterdir())


def test_data_starts_where_the_format_wants_it(tmp_path):
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, on_tensor=nobody)
    assert all(tensor.offset % 32 == 0 for tensor in read_gguf_header(tmp_path / "m.gguf").tensors)
