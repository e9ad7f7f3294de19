"""A header is accepted with all its facts, or refused with InvalidModelError; nothing else, and in little memory."""

import ctypes
import importlib.util
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localllm.errors import InvalidModelError
from localllm.gguf_header import GGUFHeader, LargeValue, read_gguf_header
from localllm.gguf_types import TENSOR_TYPES
from tests.fakes.gguf_files import ARCHITECTURE, TEMPLATE, pair, raw_gguf, tensor, text, write_tiny_gguf

HUGE = (1 << 64) - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + content


def read(tmp_path: Path, content: bytes) -> GGUFHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_gguf_header(path)


def read_or_refuse(path: Path) -> GGUFHeader | None:
    """Any other exception than InvalidModelError fails the test."""
    try:
        return read_gguf_header(path)
    except InvalidModelError:
        return None


def assert_like_the_reference(path: Path) -> None:
    """Metadata and tensors are what the `gguf` package reads."""
    header, reference = read_gguf_header(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, field in fields.items():
        value = header.metadata[key]
        if isinstance(value, LargeValue):
            assert header.array_length(key) == len(field.data)
        else:
            expected = field.contents()
            assert value == (tuple(expected) if isinstance(expected, list) else expected), key
    assert [(t.name, list(t.shape), t.type_name, t.offset, t.n_bytes, t.n_elements) for t in header.tensors] == [
        (t.name, list(t.shape), t.tensor_type.name, t.data_offset, t.n_bytes, t.n_elements) for t in reference.tensors
    ]


def test_a_valid_file_gives_its_facts(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", extra={"tiny.ints": [1, 2, 3], "tiny.flag": True, "tiny.x": 0.5})
    header = read_gguf_header(path)
    assert header.version == 3
    assert header.architecture == "llama"
    assert (header.n_ctx_train, header.n_layer, header.n_embd, header.n_vocab) == (256, 2, 32, 275)
    assert header.n_parameters == sum(tensor.n_elements for tensor in header.tensors) == 36192
    assert header.quantization == "F16"
    assert header.chat_template == TEMPLATE
    assert header.file_size == path.stat().st_size
    assert header.array_length("tokenizer.ggml.tokens") == 275
    assert header.metadata["tiny.ints"] == (1, 2, 3)
    assert header.metadata["tiny.flag"] is True
    assert header.metadata["tiny.x"] == 0.5


@pytest.mark.parametrize("tensor_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_everything_is_as_the_reference_reader_has_it(tmp_path, tensor_type):
    kind = gguf.GGMLQuantizationType[tensor_type]
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=kind, extra={"a.list": [1, 2], "a.number": 1.5})
    assert_like_the_reference(path)
    assert read_gguf_header(path).quantization == tensor_type


@pytest.mark.model
def test_the_starter_is_as_the_reference_reader_has_it(starter_path):
    assert_like_the_reference(starter_path)
    assert read_gguf_header(starter_path).quantization == "Q4_1"


def test_tensor_types_are_as_ggml_has_them():
    # Only ggml's base library is loaded, by path: the package itself would start all of llama.cpp.
    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    library = next(folder.glob("libggml-base.*"))
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for number, kind in TENSOR_TYPES.items():
        assert ggml.ggml_type_name(number).decode().upper() == kind.name.upper()
        assert (ggml.ggml_blck_size(number), ggml.ggml_type_size(number)) == (kind.block, kind.n_bytes), kind.name


def test_the_smallest_file_and_version_2(tmp_path):
    assert read(tmp_path, raw_gguf(version=2)).version == 2
    header = read(tmp_path, raw_gguf())
    assert (header.tensors, header.n_parameters, header.quantization, header.chat_template) == ((), 0, "", None)
    assert (header.n_layer, header.n_ctx_train, header.array_length("absent")) == (0, 0, 0)


def test_facts_of_the_wrong_type_are_unknown_not_errors(tmp_path):
    strange = [pair("llama.block_count", 8, text("many")), pair("llama.context_length", 5, struct.pack("<i", -7))]
    header = read(tmp_path, raw_gguf([ARCHITECTURE, *strange, pair("llama.embedding_length", 7, b"\1")]))
    assert (header.n_layer, header.n_ctx_train, header.n_embd) == (0, 0, 0)


def test_the_name_of_a_mix_is_used_only_when_it_agrees_with_the_tensors(tmp_path):
    mix = pair("general.file_type", 4, u32(15))
    k_quant = tensor("a", [256, 2], kind=12)
    assert read(tmp_path, raw_gguf([ARCHITECTURE, mix], [k_quant], bytes(288))).quantization == "Q4_K_M"
    assert read(tmp_path, raw_gguf([ARCHITECTURE], [k_quant], bytes(288))).quantization == "Q4_K"
    assert read(tmp_path, raw_gguf([ARCHITECTURE, mix], [tensor("a", [4])], bytes(16))).quantization == "F32"


F32, I8, Q4_1 = 0, 24, 3
DATA = bytes(64)
HOSTILE = {
    "html instead of a model": (b"<!DOCTYPE html><title>Sign in</title>", "does not start with GGUF"),
    "legacy ggml": (b"lmgg" + bytes(60), "older GGML"),
    "legacy ggjt": (b"tjgg" + bytes(60), "older GGJT"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 1), "big-endian"),
    "version 1": (raw_gguf(version=1), "version 1"),
    "version 4": (raw_gguf(version=4), "version 4"),
    "all pairs there could be": (raw_gguf(n_pairs=HUGE), "metadata pairs"),
    "more pairs than fit": (raw_gguf(n_pairs=60_000), "60000 metadata pairs"),
    "a negative count of tensors": (raw_gguf(n_tensors=1 << 63), "tensors"),
    "more tensors than fit": (raw_gguf(n_tensors=200_000), "200000 tensors"),
    "key of endless length": (raw_gguf([u64(HUGE) + bytes(40)]), "past the end"),
    "key past the limit": (raw_gguf([ARCHITECTURE, pair("k" * 65_536, 0, b"\0")]), "65536 bytes"),
    "empty key": (raw_gguf([ARCHITECTURE, pair("", 0, b"\0")]), "empty"),
    "key twice": (raw_gguf([ARCHITECTURE, ARCHITECTURE]), "twice"),
    "key not UTF-8": (raw_gguf([ARCHITECTURE, pair(b"\xff\xfe", 0, b"\0")]), "UTF-8"),
    "key with NUL": (raw_gguf([ARCHITECTURE, pair("a\0b", 0, b"\0")]), "NUL"),
    "unknown value type": (raw_gguf([ARCHITECTURE, pair("a", 13, bytes(8))]), "unknown type 13"),
    "no truth value": (raw_gguf([ARCHITECTURE, pair("a", 7, b"\2")]), "truth"),
    "string of endless length": (raw_gguf([ARCHITECTURE, pair("a", 8, u64(HUGE))]), "past the end"),
    "nested array": (raw_gguf([ARCHITECTURE, pair("a", 9, array(9, 1, array(0, 0)))]), "array of arrays"),
    "array of an unknown type": (raw_gguf([ARCHITECTURE, pair("a", 9, array(99, 1))]), "unknown type 99"),
    "array of endless numbers": (raw_gguf([ARCHITECTURE, pair("a", 9, array(10, HUGE))]), "past the end"),
    "array of endless strings": (raw_gguf([ARCHITECTURE, pair("a", 9, array(8, 1000))]), "past the end"),
    "arrays of too many strings": (
        raw_gguf([ARCHITECTURE, pair("a", 9, array(8, 1, text(""))), pair("b", 9, array(8, 1 << 24))]),
        "16777217 strings",
    ),
    "array with an endless string": (raw_gguf([ARCHITECTURE, pair("a", 9, array(8, 2, u64(HUGE)))]), "past the end"),
    "no architecture": (raw_gguf([]), "architecture"),
    "empty architecture": (raw_gguf([pair("general.architecture", 8, text(""))]), "architecture"),
    "architecture a number": (raw_gguf([pair("general.architecture", 4, u32(1))]), "architecture"),
    "no layers": (raw_gguf([ARCHITECTURE, pair("llama.block_count", 4, u32(0))]), "0 layers"),
    "more layers than llama.cpp bears": (
        raw_gguf([ARCHITECTURE, pair("llama.block_count", 4, u32(513))]),
        "513 layers",
    ),
    "alignment zero": (raw_gguf([ARCHITECTURE, pair("general.alignment", 4, u32(0))]), "alignment is 0"),
    "alignment odd": (raw_gguf([ARCHITECTURE, pair("general.alignment", 4, u32(48))]), "alignment is 48"),
    "alignment too small": (raw_gguf([ARCHITECTURE, pair("general.alignment", 4, u32(4))]), "alignment is 4"),
    "alignment absurd": (raw_gguf([ARCHITECTURE, pair("general.alignment", 4, u32(1 << 31))]), "alignment is 2147"),
    "alignment a string": (raw_gguf([ARCHITECTURE, pair("general.alignment", 8, text("32"))]), "not a u32"),
    "alignment 64 bits wide": (raw_gguf([ARCHITECTURE, pair("general.alignment", 10, u64(32))]), "not a u32"),
    "tensor without a name": (raw_gguf(tensors=[tensor("", [4])], data=DATA), "no name"),
    "tensor twice": (raw_gguf(tensors=[tensor("a", [4]), tensor("a", [4], offset=32)], data=DATA), "twice"),
    "tensor with a long name": (raw_gguf(tensors=[tensor("n" * 64, [4])], data=DATA), "64 bytes"),
    "tensor name with NUL": (raw_gguf(tensors=[tensor("a\0", [4])], data=DATA), "NUL"),
    "no dimensions": (raw_gguf(tensors=[tensor("a", [])], data=DATA), "0 dimensions"),
    "five dimensions": (raw_gguf(tensors=[tensor("a", [1] * 5)], data=DATA), "5 dimensions"),
    "endless dimensions": (raw_gguf(tensors=[tensor("a", [1], n_dims=0xFFFFFFFF)], data=DATA), "dimensions"),
    "a dimension of zero": (raw_gguf(tensors=[tensor("a", [4, 0])], data=DATA), "impossible shape"),
    "a negative dimension": (raw_gguf(tensors=[tensor("a", [HUGE])], data=DATA), "impossible shape"),
    "dimensions that wrap to 0": (raw_gguf(tensors=[tensor("a", [1 << 32, 1 << 32])], data=DATA), "impossible shape"),
    "dimensions that wrap to 4": (raw_gguf(tensors=[tensor("a", [(1 << 62) + 1, 4])], data=DATA), "impossible shape"),
    "bytes that wrap": (raw_gguf(tensors=[tensor("a", [1 << 61, 2])], data=DATA), "impossible shape"),
    "removed type": (raw_gguf(tensors=[tensor("a", [32], kind=4)], data=DATA), "unknown type 4"),
    "type from the future": (raw_gguf(tensors=[tensor("a", [32], kind=1000)], data=DATA), "unknown type 1000"),
    "row of half a block": (raw_gguf(tensors=[tensor("a", [16, 2], kind=Q4_1)], data=DATA), "multiple of 32"),
    "crooked offset": (raw_gguf(tensors=[tensor("a", [4], offset=16)], data=DATA), "multiple of 32"),
    "offset past the end": (raw_gguf(tensors=[tensor("a", [4], offset=1 << 40)], data=DATA), "missing"),
    "offset that wraps": (raw_gguf(tensors=[tensor("a", [4], offset=HUGE - 31)], data=DATA), "missing"),
    "data past the end": (raw_gguf(tensors=[tensor("a", [17])], data=DATA), "4 of its"),
    "tensors over each other": (
        raw_gguf(tensors=[tensor("a", [16]), tensor("b", [4], offset=32)], data=DATA),
        "'a' and 'b' lie over each other",
    ),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path, content, words):
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModelError, match=r"model\.gguf is not a valid GGUF file") as refused:
            read(tmp_path, content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert words in refused.value.message
    assert refused.value.hint
    assert peak < 1_000_000


def test_a_message_shows_no_escape_sequences(tmp_path):
    twice = pair("\x1b[2J\nboom", 0, b"\0")
    with pytest.raises(InvalidModelError) as refused:
        read(tmp_path, raw_gguf([ARCHITECTURE, twice, twice]))
    assert refused.value.message.isprintable()


def test_a_file_cut_anywhere_is_refused(tmp_path):
    extra = [
        pair("a", 9, array(4, 2, bytes(8))),
        pair("b", 9, array(8, 2, text("x") + text("yz"))),
        pair("c", 7, b"\1"),
    ]
    tensors = [tensor("t", [4]), tensor("u", [32, 1], kind=Q4_1, offset=32)]
    whole = raw_gguf([ARCHITECTURE, *extra], tensors, bytes(52))
    assert len(read(tmp_path, whole).tensors) == 2
    for length in range(len(whole)):
        with pytest.raises(InvalidModelError) as refused:
            read(tmp_path, whole[:length])
        assert "pull the model again" in refused.value.hint


def test_a_download_cut_short_says_how_much_is_missing(tmp_path):
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    end = max(tensor.offset + tensor.n_bytes for tensor in read(tmp_path, whole).tensors)
    with pytest.raises(InvalidModelError, match=f"1000 of its {end} bytes are missing") as refused:
        read(tmp_path, whole[: end - 1000])
    assert "pull the model again" in refused.value.hint
    for length in random.Random(0).sample(range(end), 100):
        (tmp_path / "model.gguf").write_bytes(whole[:length])
        assert read_or_refuse(tmp_path / "model.gguf") is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_layer=1).read_bytes()


@settings(
    derandomize=True, deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_give_a_header_or_an_error(tmp_path, tiny, data):
    content = bytearray(tiny)
    places = st.integers(0, 9000)  # the header and a little of the data
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        content[place] = value
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    read_or_refuse(path)


@settings(
    derandomize=True, deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(8, 3000),
    value=st.sampled_from([0, 1, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, HUGE]),
)
def test_large_numbers_anywhere_give_a_header_or_an_error(tmp_path, tiny, place, value):
    path = tmp_path / "number.gguf"
    path.write_bytes(tiny[:place] + u64(value) + tiny[place + 8 :])
    read_or_refuse(path)


@settings(
    derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(junk=st.binary(max_size=400))
def test_junk_after_the_magic_gives_a_header_or_an_error(tmp_path, junk):
    path = tmp_path / "junk.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + junk)
    read_or_refuse(path)


def test_large_values_are_stepped_over_quickly_and_in_little_memory(tmp_path):
    count = 250_000
    tokens = array(8, count, b"".join(text(f"token{index}") for index in range(count)))
    scores = array(6, count, bytes(4 * count))
    long_text = pair("long", 8, text(b"x" * 5_000_000))
    many = [pair(f"t{index}", 8, text(b"y" * 900_000)) for index in range(30)]
    pairs = [ARCHITECTURE, pair("tokens", 9, tokens), pair("scores", 9, scores), long_text, *many]
    (tmp_path / "large.gguf").write_bytes(raw_gguf(pairs))
    del tokens, scores, long_text, many, pairs

    started = time.perf_counter()
    read_gguf_header(tmp_path / "large.gguf")
    seconds = time.perf_counter() - started
    tracemalloc.start()
    try:
        header = read_gguf_header(tmp_path / "large.gguf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert header.array_length("tokens") == header.array_length("scores") == count
    assert header.array_length("long") == 0
    assert header.metadata["long"] == LargeValue("string", 5_000_000, header.metadata["long"].position)
    assert isinstance(header.metadata["t29"], LargeValue)  # past what is kept altogether
    assert peak < 25_000_000
    assert seconds < 1.5  # about 0.06 on an idle core; a quadratic reader takes minutes


def test_claims_that_fit_a_file_of_holes_cost_neither_memory_nor_time(tmp_path):
    path = tmp_path / "holes.gguf"
    path.write_bytes(raw_gguf([ARCHITECTURE, pair("a", 9, array(8, 1 << 32))]))
    os.truncate(path, 1 << 36)
    with pytest.raises(InvalidModelError, match="4294967296 strings"):
        read_gguf_header(path)
    path.write_bytes(raw_gguf([ARCHITECTURE, pair("a", 8, u64(1 << 35))]))
    os.truncate(path, 1 << 36)
    tracemalloc.start()
    try:
        header = read_gguf_header(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert header.metadata["a"] == LargeValue("string", 1 << 35, 90)
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, Path.touch, lambda path: None], ids=["directory", "fifo", "empty", "none"]
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "thing.gguf")
    with pytest.raises(InvalidModelError, match=r"thing\.gguf"):
        read_gguf_header(tmp_path / "thing.gguf")


def test_a_link_to_a_file_is_followed(tmp_path):
    write_tiny_gguf(tmp_path / "blob")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "blob")
    assert read_gguf_header(tmp_path / "link.gguf").architecture == "llama"
