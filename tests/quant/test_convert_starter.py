"""The real starter model through both conversions."""

import mlx.core as mx
import numpy as np
import pytest

from quant.convert import from_gguf, to_gguf
from quant.tensors.dtypes import to_float32
from quant.tensors.gguf_reader import GGUFSource
from tests.fakes.llama_logits import llama_logits

TOKENS = [504, 3575, 282, 4649, 314, 7042, 30, 4215, 253, 655, 28, 281, 253, 1165, 4744, 411, 260, 6127]


@pytest.mark.model
def test_the_starter_as_a_directory_and_back(tmp_path, starter_path):
    from mlx_lm.utils import load_model

    from_gguf(starter_path, tmp_path / "hf", dtype="f32")
    to_gguf(tmp_path / "hf", tmp_path / "model.gguf", type="f32")
    with GGUFSource(starter_path) as original, GGUFSource(tmp_path / "model.gguf") as again:
        assert set(original.tensors) == set(again.tensors)
        for name, info in original.tensors.items():
            expected = np.array(to_float32(original.read_rows(name, 0, info.n_rows), info.type_name))
            assert again.read_rows(name, 0, again.tensors[name].n_rows).tobytes() == expected.tobytes(), name

    with mx.stream(mx.cpu):
        model, _ = load_model(tmp_path / "hf")
        reference = np.array(model(mx.array([TOKENS]))[0])
    logits = llama_logits(tmp_path / "model.gguf", TOKENS)
    assert np.abs(logits - reference).max() <= 1e-3 * np.abs(reference).max()
    assert np.array_equal(logits.argmax(-1), reference.argmax(-1))
