"""The catalogue agrees with the library that does the work."""

import ctypes

import pytest

from localllm.errors import UsageError
from localllm.gguf_types import TENSOR_TYPES
from quant.llama_types import ASSERTS_IMATRIX, FILE_TYPES, TENSOR_TYPE_NUMBERS, find_file_type, find_tensor_type


def test_the_numbers_are_llama_cpps():
    import llama_cpp

    known = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_").lower(): value
        for name, value in vars(llama_cpp.llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_") and isinstance(value, int)
    }
    assert {name: kind.number for name, kind in FILE_TYPES.items()} == {name: known[name] for name in FILE_TYPES}
    # What is left out: a placeholder, and a type that llama_model_quantize does not offer.
    assert set(known) - set(FILE_TYPES) == {"guessed", "nvfp4"}


def test_the_types_that_need_an_imatrix_are_ggmls():
    from llama_cpp._ggml import libggml

    libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    needy = {name for name, number in TENSOR_TYPE_NUMBERS.items() if libggml.ggml_quantize_requires_imatrix(number)}
    assert needy == ASSERTS_IMATRIX


def test_every_base_is_a_tensor_type_with_fewer_bits_than_its_mix():
    sizes = {kind.name: 8 * kind.n_bytes / kind.block for kind in TENSOR_TYPES.values()}
    for kind in FILE_TYPES.values():
        assert kind.base in TENSOR_TYPE_NUMBERS
        assert sizes[kind.base] - 0.01 <= kind.bits < sizes[kind.base] + 1
        assert kind.block in (1, 32, 64, 128, 256)


@pytest.mark.parametrize("typed", ["Q4_K_M", " q4-k-m ", "q4_k", "Q4_K"])
def test_a_type_is_found_as_people_write_it(typed):
    assert find_file_type(typed).name == "q4_k_m"


def test_an_unknown_type_is_refused_with_what_is_close():
    with pytest.raises(UsageError, match="q4_k_m"):
        find_file_type("q4_km")
    with pytest.raises(UsageError, match="iq4_xs"):
        find_file_type("banana")


def test_a_mix_is_no_type_of_a_tensor():
    assert find_tensor_type("q6_k") == "Q6_K"
    with pytest.raises(UsageError, match="mix for whole files"):
        find_tensor_type("q4_k_m")
    with pytest.raises(UsageError, match="no type"):
        find_tensor_type("Q8_K")
