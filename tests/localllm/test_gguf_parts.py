"""Models split into several files, as the reference writer splits them."""

import gguf
import numpy as np
import pytest

from localllm.errors import InvalidModelError
from localllm.gguf_header import read_gguf_header, read_gguf_parts
from tests.fakes.gguf_files import write_tiny_gguf


@pytest.fixture
def parts(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(1)
    for number in range(5):
        writer.add_tensor(f"t{number}.weight", np.full((4, 32), number, np.float32))
    writer.write_header_to_file(tmp_path / "big.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("*.gguf"))


def test_the_parts_make_one_model(parts):
    assert len(parts) == 3
    header = read_gguf_parts(parts)
    assert header.architecture == "llama"
    assert [tensor.name for tensor in header.tensors] == [f"t{number}.weight" for number in range(5)]
    assert header.n_parameters == 5 * 128
    assert header.file_size == sum(path.stat().st_size for path in parts)


def test_a_later_part_alone_has_no_architecture(parts):
    assert read_gguf_header(parts[1]).architecture == ""
    with pytest.raises(InvalidModelError, match="one of 3 parts, and 1 are here"):
        read_gguf_parts(parts[1:2])


@pytest.mark.parametrize("order", [[0, 2, 1], [0, 1, 1], [1, 0, 2]])
def test_parts_out_of_order(parts, order):
    with pytest.raises(InvalidModelError, match=r"is not part \d of 3"):
        read_gguf_parts([parts[number] for number in order])


def test_every_part_is_checked(parts):
    parts[2].write_bytes(parts[2].read_bytes()[:-8])
    with pytest.raises(InvalidModelError, match="bytes are missing"):
        read_gguf_parts(parts)


def test_a_model_in_one_file(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert read_gguf_parts([path]) == read_gguf_header(path)
    with pytest.raises(InvalidModelError, match="one of 1 parts, and 2 are here"):
        read_gguf_parts([path, path])
