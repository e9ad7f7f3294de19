"""Quantizing: the bytes are llama-quantize's, and nothing half-made is ever left."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from localllm.errors import (
    DiskFullError,
    InvalidModelError,
    JobCancelledError,
    LocalLLMError,
    QuantizeError,
    UsageError,
)
from localllm.gguf_header import read_gguf_header, read_gguf_parts
from quant.imatrix.file import read_imatrix, write_imatrix
from quant.llama_quantize import quantize_gguf
from quant.llama_types import FILE_TYPES
from tests.fakes.gguf_files import write_tiny_gguf
from tests.quant.digests import needs_fma, tensor_digest
from tests.quant.imatrices import made_up_imatrix

# All 35 take a minute and a half.
_QUICK = ("q8_0", "q4_0", "q4_k_m", "q6_k", "q3_k_m", "iq4_xs", "iq3_s", "tq1_0", "mxfp4_moe")
_GOLDEN = json.loads(Path(__file__).with_name("golden_quantized.json").read_text())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("wide") / "wide.gguf", n_embd=256, n_ff=512)


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its importance matrix beside it."""
    path = tmp_path_factory.mktemp("golden") / "model.gguf"
    write_tiny_gguf(path, n_embd=256, n_ff=256, n_head_kv=1)
    made_up_imatrix(path, path.with_name("imatrix.gguf"))
    return path


@pytest.fixture(scope="module")
def imatrix(wide: Path) -> Path:
    return made_up_imatrix(wide, wide.with_name("imatrix.gguf"))


@needs_fma
@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILE_TYPES]
)
def test_the_tensors_are_those_of_llama_quantize(golden_model, tmp_path, name):
    """The digests are of ``llama-quantize --imatrix imatrix.gguf model.gguf out.gguf TYPE 1`` (llama.cpp of 0.3.36)."""
    imatrix = golden_model.with_name("imatrix.gguf")
    made = quantize_gguf(golden_model, tmp_path / "out.gguf", name, imatrix=imatrix, n_threads=1)
    assert tensor_digest(tmp_path / "out.gguf") == _GOLDEN[name]
    planned = {tensor.name: (tensor.to_type, tensor.n_bytes) for tensor in made.plan.tensors}
    written = read_gguf_header(tmp_path / "out.gguf").tensors
    assert planned == {tensor.name: (tensor.type_name, tensor.n_bytes) for tensor in written}
    assert abs(made.plan.n_bytes - made.n_bytes) < 1024


def test_the_metadata_says_where_the_imatrix_came_from_without_folders(wide, imatrix, tmp_path):
    quantize_gguf(wide, tmp_path / "out.gguf", "q4_k_m", imatrix=imatrix, n_threads=1)
    metadata = read_gguf_header(tmp_path / "out.gguf").metadata
    assert metadata["quantize.imatrix.file"] == "imatrix.gguf"
    assert metadata["quantize.imatrix.dataset"] == "made-up.txt"
    assert metadata["quantize.imatrix.entries_count"] == 14
    assert metadata["quantize.imatrix.chunks_count"] == 2
    assert metadata["general.file_type"] == FILE_TYPES["q4_k_m"].number
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o600


def test_a_long_name_of_an_imatrix_is_cut_between_letters(wide, tmp_path):
    imatrix = made_up_imatrix(wide, tmp_path / f"{'ß' * 70}.gguf")
    quantize_gguf(wide, tmp_path / "out.gguf", "q8_0", imatrix=imatrix, n_threads=1)
    assert read_gguf_header(tmp_path / "out.gguf").metadata["quantize.imatrix.file"] == "ß" * 63


def test_progress_names_every_tensor_up_to_the_last(wide, tmp_path):
    seen: list[tuple[str, int, int | None]] = []
    quantize_gguf(wide, tmp_path / "out.gguf", "q8_0", n_threads=1, progress=lambda *said: seen.append(said))
    assert seen[-1][1:] == (21, 21)
    assert all(total == 21 for _, _, total in seen)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_cancel_leaves_nothing(wide, tmp_path):
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise JobCancelledError

    with pytest.raises(JobCancelledError):
        quantize_gguf(wide, tmp_path / "out.gguf", "q4_k_m", n_threads=1, check_cancelled=cancel)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_leave_one_whole_model(wide, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: quantize_gguf(wide, tmp_path / "out.gguf", "q8_0", n_threads=1), range(2)))
    assert made[0] == made[1]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.gguf"]
    assert {tensor.name: tensor.type_name for tensor in read_gguf_header(tmp_path / "out.gguf").tensors} == {
        tensor.name: tensor.to_type for tensor in made[0].plan.tensors
    }


def test_an_earlier_result_stays_when_the_next_fails(wide, tmp_path):
    target = tmp_path / "out.gguf"
    quantize_gguf(wide, target, "q8_0", n_threads=1)
    before = target.read_bytes()
    with pytest.raises(QuantizeError, match="importance matrix"):
        quantize_gguf(wide, target, "iq2_xxs", n_threads=1)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_that_fills_half_way_is_named_and_nothing_is_left(wide, tmp_path, monkeypatch):
    # A child whose files may not grow past 100 kB sees what a full disk shows.
    monkeypatch.setattr("quant.llama_quantize.WORKER", "tests.quant.small_disk_worker")
    with pytest.raises(DiskFullError, match="disk is full"):
        quantize_gguf(wide, tmp_path / "out.gguf", "q8_0", n_threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to RLIMIT_DATA")
def test_memory_does_not_grow_with_the_largest_tensor(tmp_path, monkeypatch):
    # Each of its three largest matrices, unpacked and quantized whole, takes 170 MB; a thread's stack counts too.
    large = write_tiny_gguf(tmp_path / "large.gguf", n_layer=1, n_embd=256, n_ff=1 << 17)
    monkeypatch.setattr("quant.llama_quantize.WORKER", "tests.quant.small_memory_worker")
    made = quantize_gguf(large, tmp_path / "out.gguf", "q8_0", n_threads=2)
    assert max(tensor.n_bytes for tensor in made.plan.tensors) > 35_000_000


def test_too_little_room_is_seen_before_the_work_begins(wide, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DiskFullError):
        quantize_gguf(wide, tmp_path / "out.gguf", "q8_0", n_threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_is_an_error_with_the_last_words(wide, tmp_path, monkeypatch):
    monkeypatch.setattr("quant.llama_quantize.WORKER", "tests.quant.asserting_worker")
    with pytest.raises(QuantizeError, match=r"ended unexpectedly: a failed check.*\(SIGABRT\).*GGML_ASSERT"):
        quantize_gguf(wide, tmp_path / "out.gguf", "q8_0", n_threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_cut_short_is_refused(wide, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(wide.read_bytes()[:-5000])
    with pytest.raises(InvalidModelError, match="are missing"):
        quantize_gguf(cut, tmp_path / "out.gguf", "q8_0", n_threads=1)


def test_an_importance_matrix_of_another_model_is_refused(wide, tmp_path):
    narrow = write_tiny_gguf(tmp_path / "narrow.gguf", n_embd=64, n_ff=128)
    other = made_up_imatrix(narrow, tmp_path / "other.gguf")
    with pytest.raises(
        QuantizeError, match=r"another model: it has 64 inputs for blk\.0\.attn_k\.weight, which has 256"
    ):
        quantize_gguf(wide, tmp_path / "out.gguf", "q4_0", imatrix=other, n_threads=1)
    nothing = made_up_imatrix(wide, tmp_path / "nothing.gguf", leave_out="blk.0")
    matrix = read_imatrix(nothing)
    renamed = {name.replace("blk.", "h."): entry for name, entry in matrix.entries.items()}
    write_imatrix(nothing, replace(matrix, entries=renamed))
    with pytest.raises(QuantizeError, match="another model: it has nothing for"):
        quantize_gguf(wide, tmp_path / "out.gguf", "q4_0", imatrix=nothing, n_threads=1)
    assert not (tmp_path / "out.gguf").exists()


def test_a_model_is_not_quantized_into_itself(wide):
    with pytest.raises(UsageError, match="own file"):
        quantize_gguf(wide, wide, "q8_0")


def test_an_unknown_architecture_is_llama_cpps_refusal(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nosuch")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LocalLLMError, match="nosuch"):
        quantize_gguf(tmp_path / "odd.gguf", tmp_path / "out.gguf", "q8_0", n_threads=1)


def test_a_split_model_becomes_one_or_as_many_files(wide, tmp_path):
    parts = _split(wide, tmp_path)
    one = quantize_gguf(parts[0], tmp_path / "one.gguf", "q5_k_m", n_threads=1)
    assert one.files == (tmp_path / "one.gguf",)
    many = quantize_gguf(parts[0], tmp_path / "many.gguf", "q5_k_m", keep_split=True, n_threads=1)
    assert [path.name for path in many.files] == ["many-00001-of-00002.gguf", "many-00002-of-00002.gguf"]
    assert {(t.name, t.type_name) for t in read_gguf_parts(many.files).tensors} == {
        (t.name, t.type_name) for t in read_gguf_header(one.files[0]).tensors
    }


def _split(source: Path, directory: Path) -> list[Path]:
    from quant.tensors.gguf_reader import GGUFSource, read_metadata
    from quant.tensors.gguf_writer import write_gguf
    from quant.tensors.rows import Piece, TensorPlan, planned_tensor

    with GGUFSource(source) as reader:
        tensors = [
            planned_tensor(TensorPlan(t.name, t.shape, (Piece(t.name, 0, t.n_rows),)), reader, t.type_name)
            for t in reader.tensors.values()
        ]
        metadata, target = read_metadata(source), directory / "s.gguf"
        return list(write_gguf(target, metadata, tensors, split_bytes=1_500_000, on_tensor=lambda *_: None))
