"""Directories of safetensors: whole, in shards, and damaged in every way that a download or a person can."""

import errno
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localllm.errors import DiskFullError, InvalidModelError
from quant.tensors.rows import OutTensor, array_tensor
from quant.tensors.safetensors import INDEX, SafetensorsSource, write_safetensors
from quant.tensors.source import TensorInfo

ARRAYS = {f"layer.{n}.weight": np.arange(12, dtype=np.float32).reshape(3, 4) + n for n in range(4)}


def shards_of(directory, count):
    """The four tensors over ``count`` files with an index."""
    weight_map = {}
    for part in range(count):
        file = f"model-{part + 1:05d}-of-{count:05d}.safetensors"
        own = {name: array for n, (name, array) in enumerate(ARRAYS.items()) if n % count == part}
        save_file(own, directory / file)
        weight_map |= dict.fromkeys(own, file)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def raw_file(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def all_of(source):
    return {
        name: source.read_rows(name, 0, info.n_rows).reshape(info.shape).copy() for name, info in source.tensors.items()
    }


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_are_read_as_one_model(tmp_path, count):
    with SafetensorsSource(shards_of(tmp_path, count)) as source:
        found = all_of(source)
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_some_rows_only(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    with SafetensorsSource(tmp_path) as source:
        assert np.array_equal(source.read_rows("layer.2.weight", 1, 2), ARRAYS["layer.2.weight"][1:2])


def test_an_index_of_a_hundred_shards(tmp_path):
    weight_map = {}
    for part in range(100):
        file = f"model-{part + 1:05d}-of-00100.safetensors"
        save_file({f"t.{part}": np.full((2, 2), part, np.float16)}, tmp_path / file)
        weight_map[f"t.{part}"] = file
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with SafetensorsSource(tmp_path) as source:
        assert len(source.tensors) == 100
        assert [source.read_rows(f"t.{part}", 0, 1)[0, 0] for part in (0, 57, 99)] == [0, 57, 99]
    (tmp_path / "model-00058-of-00100.safetensors").unlink()
    with pytest.raises(InvalidModelError, match=r"1 of 100 files .* model-00058-of-00100"):
        SafetensorsSource(tmp_path)


def test_a_missing_shard_without_an_index_is_named(tmp_path):
    shards_of(tmp_path, 4)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(InvalidModelError, match="model-00003-of-00004"):
        SafetensorsSource(tmp_path)


def test_a_tensor_that_the_index_has_elsewhere_is_named(tmp_path):
    shards_of(tmp_path, 2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["layer.1.weight"] = "model-00001-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InvalidModelError, match=r"layer\.1\.weight"):
        SafetensorsSource(tmp_path)


def test_a_tensor_in_two_shards_is_named(tmp_path):
    shards_of(tmp_path, 2)
    save_file(ARRAYS, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(InvalidModelError, match=r"layer\.0\.weight.*both in"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        b"{",
        b"[]",
        b'{"weight_map": 3}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "../a.safetensors"}}',
        b'{"weight_map": {"a": 1}}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path, index):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(InvalidModelError, match="index"):
        SafetensorsSource(tmp_path)


def test_a_directory_without_weights(tmp_path):
    with pytest.raises(InvalidModelError, match="no weights"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{ ]", b"", "header is not valid"),
        ({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, bytes(24), "lies over another"),
        ({"a": entry(0, 16, [4])}, bytes(12), "4 of its .* bytes are missing"),
        ({"a": entry(0, 16, [5])}, bytes(16), "header is not valid"),
        ({"a": entry(16, 0, [4])}, bytes(16), "header is not valid"),
        ({"a": entry(0, 16, [-4])}, bytes(16), "header is not valid"),
        ({"a": entry(0, 16, [4.0])}, bytes(16), "header is not valid"),
        ({"a": entry(0, 16, [4], "../x")}, bytes(16), "header is not valid"),
        (b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": 1}', bytes(4), "header is not valid"),
        (b"[" * 5000, b"", "header is not valid"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, header, data, message):
    raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(InvalidModelError, match=f"model.safetensors is damaged: .*{message}"):
        SafetensorsSource(tmp_path)


def test_a_header_longer_than_the_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(InvalidModelError, match="cut short or too large"):
        SafetensorsSource(tmp_path)


def test_a_type_that_nobody_knows_is_refused_by_name_when_it_is_read(tmp_path):
    raw_file(tmp_path / "model.safetensors", {"a": entry(0, 16, [4], "F4")}, bytes(16))
    with SafetensorsSource(tmp_path) as source, pytest.raises(InvalidModelError, match="of the type F4"):
        source.read_rows("a", 0, 1)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    save_file({"a": np.zeros((1000, 8), np.float32)}, tmp_path / "model.safetensors")
    with SafetensorsSource(tmp_path) as source:
        source.read_rows("a", 0, 1)
        with (tmp_path / "model.safetensors").open("r+b") as handle:
            handle.truncate(5000)
        with pytest.raises(InvalidModelError, match="cut short while"):
            source.read_rows("a", 0, 1000)


def test_what_is_written_is_what_the_format_s_own_library_reads(tmp_path):
    tensors = [array_tensor(name, array) for name, array in ARRAYS.items()]
    half = np.arange(6, dtype=np.float16)
    tensors.append(OutTensor(TensorInfo("half", "F16", (6,)), lambda: iter([half[:2], half[2:]])))
    told = []
    write_safetensors(tmp_path, tensors, shard_bytes=1 << 30, on_tensor=lambda name, n: told.append((name, n)))
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == {*ARRAYS, "half"}
    assert np.array_equal(found["half"], half)
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)
    assert sum(n for _, n in told) == 4 * 48 + 12


def test_shards_that_are_written_are_read_again(tmp_path):
    tensors = [array_tensor(name, array) for name, array in ARRAYS.items()]
    files = write_safetensors(tmp_path, tensors, shard_bytes=100, on_tensor=lambda *_: None)
    assert [path.name for path in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    with SafetensorsSource(tmp_path) as source:
        assert all(np.array_equal(array, ARRAYS[name]) for name, array in all_of(source).items())


def test_a_full_disk_is_named(tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError):
        write_safetensors(tmp_path, [array_tensor("a", ARRAYS["layer.0.weight"])], shard_bytes=1, on_tensor=full)
