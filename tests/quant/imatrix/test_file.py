"""The importance matrix's file: what is written is read, and what is damaged is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from localllm.errors import InvalidModelError, QuantizeError
from quant.imatrix.file import ImatrixEntry, ImportanceMatrix, combine, read_imatrix, write_imatrix
from tests.fakes.gguf_files import write_tiny_gguf


def _matrix(seed: int = 0, chunks: int = 2) -> ImportanceMatrix:
    rng = np.random.default_rng(seed)
    dense = ImatrixEntry(rng.uniform(1, 9, (1, 8)).astype(np.float32), np.array([32 * chunks]))
    routed = ImatrixEntry(rng.uniform(1, 9, (3, 8)).astype(np.float32), np.array([40, 0, 24]))
    entries = {"blk.0.attn_q.weight": dense, "blk.0.ffn_up_exps.weight": routed}
    return ImportanceMatrix(entries, ("a.txt", "b.txt"), chunks, 32)


def test_what_is_written_is_read(tmp_path):
    matrix = _matrix()
    write_imatrix(tmp_path / "i.gguf", matrix)
    found = read_imatrix(tmp_path / "i.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "b.txt"), 2, 32)
    for name, entry in matrix.entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums)
        assert np.array_equal(found.entries[name].counts, entry.counts)


def test_an_expert_that_no_token_reached_weighs_one():
    weights = _matrix().weights()["blk.0.ffn_up_exps.weight"].reshape(3, 8)
    sums = _matrix().entries["blk.0.ffn_up_exps.weight"].sums
    assert np.array_equal(weights[1], np.ones(8, np.float32))
    assert np.array_equal(weights[0], sums[0] / np.float32(40))


def test_combined_matrices_are_those_of_all_texts():
    both = combine([_matrix(0), _matrix(1)])
    name = "blk.0.attn_q.weight"
    assert np.array_equal(both.entries[name].sums, _matrix(0).entries[name].sums + _matrix(1).entries[name].sums)
    assert both.entries[name].counts.tolist() == [128]
    assert both.chunk_count == 4
    assert both.datasets == ("a.txt", "b.txt") * 2


def test_matrices_of_different_models_are_not_combined():
    other = ImportanceMatrix({"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 4)), np.array([1]))}, (), 1, 32)
    with pytest.raises(QuantizeError, match=r"blk\.0\.attn_q"):
        combine([_matrix(), other])


def test_the_form_before_gguf_is_read(tmp_path):
    values = np.array([2.0, 6.0], np.float32)
    name = b"blk.0.attn_q.weight"
    raw = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 2, 2) + values.tobytes()
    (tmp_path / "i.dat").write_bytes(raw + struct.pack("<ii", 2, 5) + b"a.txt")
    matrix = read_imatrix(tmp_path / "i.dat")
    assert matrix.weights()["blk.0.attn_q.weight"].tolist() == [1.0, 3.0]
    assert (matrix.datasets, matrix.chunk_count) == (("a.txt",), 2)


@pytest.mark.parametrize("cut", [0, 3, 4, 100, 400, -40])
def test_a_file_that_is_cut_short_is_refused(tmp_path, cut):
    path = tmp_path / "i.gguf"
    write_imatrix(path, _matrix())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidModelError):
        read_imatrix(path)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("Once upon a time there was a file of another kind.")
    with pytest.raises(InvalidModelError):
        read_imatrix(tmp_path / "x.txt")
    with pytest.raises(InvalidModelError, match="no importance matrix"):
        read_imatrix(write_tiny_gguf(tmp_path / "m.gguf"))
    with pytest.raises(InvalidModelError, match="cannot be read"):
        read_imatrix(tmp_path / "none.gguf")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_impossible_numbers_are_refused(tmp_path: Path, value: float):
    matrix = _matrix()
    matrix.entries["blk.0.attn_q.weight"].sums[0, 3] = value
    write_imatrix(tmp_path / "i.gguf", matrix)
    with pytest.raises(InvalidModelError, match=r"impossible numbers for blk\.0\.attn_q"):
        read_imatrix(tmp_path / "i.gguf")
