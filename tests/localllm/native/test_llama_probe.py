"""The probe of llama.cpp: NumPy's logits against the real library, and what it would see of a broken kernel."""

from dataclasses import replace

import numpy as np
import pytest

from localllm.native.libraries import llama_libraries
from localllm.native.llama_verdict import PROBE, TOLERANCE
from localllm.native.probe_model import ProbeModel, deviation, kinds
from localllm.native.probing import run_probe


@pytest.fixture(scope="module")
def model():
    return ProbeModel()


@pytest.mark.parametrize("way", ["full", "unpacked"])
def test_the_real_library_computes_what_numpy_does(way):
    found = run_probe(PROBE, way)
    assert found.failure == ""
    # Not zero: llama.cpp rounds activations to 8 bits for quantized matrices, and keys and values to 16.
    assert 1e-4 < found.facts["single"] < TOLERANCE
    assert 1e-4 < found.facts["batch"] < TOLERANCE


def test_it_has_every_type_that_the_issue_names(model):
    assert {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F16", "F32"} <= set(kinds())
    assert all(np.isfinite(matrix.values).all() for matrix in model.matrices.values())
    # Every packed path takes rows by eight or more, and tiles of 32.
    shapes = [matrix.values.shape for matrix in model.matrices.values()]
    assert all(rows % 32 == 0 and columns % 256 == 0 for rows, columns in shapes)


@pytest.mark.parametrize("fault", ["zeros", "eight rows"])
def test_a_fault_of_any_matrix_is_seen(model, fault):
    reference = model.logits()
    for name, matrix in list(model.matrices.items()):
        values = matrix.values.copy()
        values[: None if fault == "zeros" else 8] = 0
        model.matrices[name] = replace(matrix, values=values)
        found = deviation(model.logits(), reference)
        model.matrices[name] = matrix
        assert found > TOLERANCE, name


def test_no_numbers_are_as_far_as_can_be():
    assert deviation(np.array([[np.nan, 1.0]]), np.ones((1, 2))) == float("inf")
    assert deviation(np.ones((1, 2)), np.ones((1, 2))) == 0


def test_the_libraries_are_found_without_importing_them():
    assert any(path.name.startswith("libllama.") for path in llama_libraries())
    assert any(path.name.startswith("libggml-cpu.") for path in llama_libraries())
