"""Importance matrices from llama.cpp and from MLX: the same numbers, and those of a plain computation."""

import numpy as np
import pytest

from localllm.errors import QuantizeError
from quant.chunks import Text, cut_chunks
from quant.convert import from_gguf
from quant.imatrix.collect import Calibration, collect_imatrix
from quant.imatrix.file import read_imatrix
from quant.llama_choices import QuantizeChoices
from quant.llama_plan import plan_types
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.gguf_moe import write_tiny_moe

# Without words that the tiny vocabulary spells in two ways.
_TEXT = "the hello world of hello, the user: what? " * 60


def _calibration(n_ctx: int = 64, max_chunks: int | None = 4) -> Calibration:
    return Calibration((Text(_TEXT),), ("made-up.txt",), n_ctx, max_chunks)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    import gguf

    path = tmp_path_factory.mktemp("dense") / "m.gguf"
    return write_tiny_gguf(path, n_embd=64, n_ff=128, tensor_type=gguf.GGMLQuantizationType.F32)


def test_llama_cpp_sees_the_inputs_of_every_matrix(dense, tmp_path):
    seen = []
    made = collect_imatrix(
        dense, tmp_path / "i.gguf", _calibration(), n_threads=1, progress=lambda *said: seen.append(said)
    )
    matrix = read_imatrix(tmp_path / "i.gguf")
    kinds = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
    assert sorted(matrix.entries) == [f"blk.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds]
    assert {entry.counts.tolist()[0] for entry in matrix.entries.values()} == {4 * 64}
    assert (made.n_chunks, made.n_entries) == (4, 14)
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (4, 64, ("made-up.txt",))
    assert seen[-1] == ("chunk", 4, 4)
    # Inputs of a normed layer with weights of one have a mean square of one; q, k and v share them.
    query, key = matrix.entries["blk.0.attn_q.weight"], matrix.entries["blk.0.attn_k.weight"]
    assert np.array_equal(query.sums, key.sums)
    assert query.weights().mean() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_mlx_and_llama_cpp_agree(tmp_path, kind, dense):
    source = dense if kind == "dense" else write_tiny_moe(tmp_path / "moe.gguf")
    from_gguf(source, tmp_path / "hf", dtype="f32")
    collect_imatrix(source, tmp_path / "llama.gguf", _calibration(), n_threads=1)
    collect_imatrix(tmp_path / "hf", tmp_path / "mlx.gguf", _calibration(), n_threads=1)
    theirs, ours = read_imatrix(tmp_path / "llama.gguf"), read_imatrix(tmp_path / "mlx.gguf")
    assert set(ours.entries) == set(theirs.entries)
    for name, entry in theirs.entries.items():
        assert np.array_equal(ours.entries[name].counts, entry.counts), name
        np.testing.assert_allclose(ours.entries[name].sums, entry.sums, rtol=1e-2, atol=1e-3 * entry.sums.max())


def test_experts_are_counted_by_token(tmp_path):
    collect_imatrix(write_tiny_moe(tmp_path / "moe.gguf"), tmp_path / "i.gguf", _calibration(), n_threads=1)
    entry = read_imatrix(tmp_path / "i.gguf").entries["blk.0.ffn_down_exps.weight"]
    assert entry.sums.shape == (4, 32)
    assert entry.counts.sum() == 4 * 64 * 2  # two experts a token


def test_the_output_is_measured_where_asked(dense, tmp_path):
    collect_imatrix(dense, tmp_path / "i.gguf", _calibration(max_chunks=2), with_output=True, n_threads=1)
    assert "output.weight" in read_imatrix(tmp_path / "i.gguf").entries


def test_a_measured_matrix_lacks_nothing_that_few_bits_need(tmp_path):
    model = write_tiny_gguf(tmp_path / "m.gguf", n_embd=256, n_ff=512)
    collect_imatrix(model, tmp_path / "i.gguf", _calibration(max_chunks=2), n_threads=1)
    plan = plan_types(model, QuantizeChoices.parse("iq2_xxs"), read_imatrix(tmp_path / "i.gguf"))
    assert plan.lacking == ()


def test_too_short_a_text_is_refused(dense, tmp_path):
    short = Calibration((Text("hello world"),), ("x",))
    with pytest.raises(QuantizeError, match="too short"):
        collect_imatrix(dense, tmp_path / "i.gguf", short, n_threads=1)
    assert list(tmp_path.iterdir()) == []


def test_chunks_start_with_bos_and_drop_what_is_left_over():
    assert cut_chunks(range(10, 20), 4, None, 1) == [[1, 11, 12, 13], [1, 15, 16, 17]]
    assert cut_chunks(range(10, 20), 4, 1) == [[10, 11, 12, 13]]
