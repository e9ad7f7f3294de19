"""The real Gemma 3 270M and all-MiniLM-L6-v2 through both conversions: weights, logits and token ids.

Each difference that is left has a cause, and the cause is tried here: mlx-lm rounds Gemma's embedding scale to BF16,
and llama.cpp looks GELU up in a table of F16. What transformers computes is in ``golden_logits.json``.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from quant.convert import from_gguf, to_gguf
from quant.tensors.dtypes import to_float32
from quant.tensors.gguf_reader import GGUFSource
from quant.tokenizers.check import check_tokenizer
from quant.tokenizers.deviations import HANGUL, MARKS, SPACES, TABLES
from tests.fakes.llama_logits import llama_embedding, llama_logits
from tests.fakes.numpy_bert import bert_embedding, exact_gelu, table_gelu, tanh_gelu
from tests.quant.golden import GEMMA_POSITIONS, GEMMA_TOKENS, GEMMA_VOCABULARY, MINILM_TOKENS

pytestmark = pytest.mark.model

GOLDEN = json.loads((Path(__file__).parent / "golden_logits.json").read_text())
_MEGABYTE = 9000  # random texts of each kind, which come to 1.03 MB
_ROWS = 8192  # compared at once


@pytest.fixture(scope="module")
def gemma(tmp_path_factory, gemma_path):
    """As a directory in F32, and that as GGUF again: 2.1 GB, which do not outlive this module."""
    scratch = tmp_path_factory.mktemp("gemma")
    from_gguf(gemma_path, scratch / "hf", dtype="f32")
    to_gguf(scratch / "hf", scratch / "model.gguf", type="f32")
    yield scratch / "hf", scratch / "model.gguf"
    shutil.rmtree(scratch)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory, minilm_path):
    """Its package's directory, and that as GGUF. The pooling is in a folder that the store does not keep."""
    path = tmp_path_factory.mktemp("minilm") / "model.gguf"
    to_gguf(minilm_path, path, type="f32", pooling="mean")
    return minilm_path, path


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a part of the largest number."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_gemma_comes_back_with_the_weights_that_it_had(gemma_path, gemma):
    with GGUFSource(gemma_path) as original, GGUFSource(gemma[1]) as again:
        assert set(original.tensors) == set(again.tensors)
        for name, info in original.tensors.items():
            for start in range(0, info.n_rows, _ROWS):
                stop = min(start + _ROWS, info.n_rows)
                expected = to_float32(original.read_rows(name, start, stop), info.type_name)
                assert np.array_equal(again.read_rows(name, start, stop), expected), name


def test_gemmas_logits(gemma, monkeypatch):
    import mlx.nn as nn
    from mlx_lm.utils import load_model

    directory, path = gemma
    llama = llama_logits(path, GEMMA_TOKENS)
    expected = np.array(GOLDEN["gemma-3-270m"])
    assert off(llama[GEMMA_POSITIONS, GEMMA_VOCABULARY], expected) <= 1e-3

    with mx.stream(mx.cpu):
        model, _ = load_model(directory)
        tokens = mx.array([GEMMA_TOKENS])
        as_it_is = np.array(model(tokens)[0])
        # The scale is the root of 640: mlx-lm multiplies by it in BF16, which is 25.25 instead of 25.298.
        scaled = model.model.embed_tokens(tokens) * (640**0.5 / 25.25)
        exact = np.array(model(tokens, input_embeddings=scaled + 0)[0])
        gelu = nn.gelu_approx

        def looked_up(x: mx.array) -> mx.array:
            return gelu(x.astype(mx.float16).astype(mx.float32)).astype(mx.float16).astype(mx.float32)

        monkeypatch.setattr(nn, "gelu_approx", looked_up)
        table = np.array(model(tokens, input_embeddings=scaled + 0)[0])
        disturbed = np.array(model(tokens, input_embeddings=scaled * (1 + 3e-7))[0])

    # Bar 1, with the scale in full: 5e-4, and mlx-lm is transformers to seven digits.
    assert off(exact, llama) <= 1e-3
    assert off(exact[GEMMA_POSITIONS, GEMMA_VOCABULARY], expected) <= 1e-5
    # Without that it is further off than the bar.
    assert 1e-3 < off(as_it_is, llama) <= 1e-2
    for logits in (as_it_is, exact):
        assert np.array_equal(logits.argmax(-1), llama.argmax(-1))
    # What is left is GELU's table: put into mlx-lm, it brings the logits nearer to llama.cpp's, until what remains is
    # what a change of 3e-7 in the input does to roundings on the way.
    noise = np.abs(table - disturbed).mean()
    assert np.abs(table - llama).mean() <= min(1.5 * noise, 0.9 * np.abs(exact - llama).mean())


def test_gemmas_token_ids_on_a_megabyte(gemma_path, gemma):
    check = check_tokenizer(gemma_path, gemma[0], n_random=_MEGABYTE)
    assert check.n_bytes > 1_000_000
    assert (check.different, check.explained) == ({}, {}), check.example
    with GGUFSource(gemma_path) as original, GGUFSource(gemma[1]) as again:
        for key in ("tokens", "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix"):
            assert again.metadata[f"tokenizer.ggml.{key}"] == original.metadata[f"tokenizer.ggml.{key}"], key


def test_minilm_comes_back_with_the_weights_that_it_had(minilm, tmp_path):
    directory, path = minilm
    from_gguf(path, tmp_path / "back", dtype="f32")
    original, back = (load_file(where / "model.safetensors") for where in (directory, tmp_path / "back"))
    # Neither the pooler (sentence-transformers takes the mean) nor the numbers of positions are the embedder's.
    assert set(original) - set(back) == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    assert all(np.array_equal(back[name], original[name]) for name in back)
    to_gguf(tmp_path / "back", tmp_path / "again.gguf", type="f32")
    assert (tmp_path / "again.gguf").stat().st_size == path.stat().st_size


def test_minilms_embedding(minilm):
    directory, path = minilm
    llama = llama_embedding(path, MINILM_TOKENS)
    expected = np.array(GOLDEN["all-minilm-l6-v2"])
    exact, tanh, table = (
        bert_embedding(directory, MINILM_TOKENS, gelu) for gelu in (exact_gelu, tanh_gelu, table_gelu)
    )
    assert off(exact, expected) <= 1e-5
    # Past bar 1, and the form of GELU is why: the same model with the tanh form is as far from transformers, and one
    # with the table several times nearer to llama.cpp (what the table rounds up and what down is left to chance).
    assert 1e-3 < off(llama, expected) <= 2e-3
    assert 1e-3 < off(tanh, expected) <= 2e-3
    assert off(llama, table) <= 3e-4
    assert float(llama @ expected / np.linalg.norm(llama) / np.linalg.norm(expected)) >= 1 - 1e-6


def test_minilms_token_ids_on_a_megabyte(minilm):
    directory, path = minilm
    check = check_tokenizer(path, directory, n_random=_MEGABYTE)
    assert check.n_bytes > 1_000_000
    assert check.different == {}, check.example
    # These are llama.cpp's: see quant/tokenizers/deviations.py.
    assert set(check.explained) == {HANGUL, MARKS, SPACES, TABLES}
