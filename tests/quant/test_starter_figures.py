"""The real starter model: the figures of llama.cpp's own tools, recorded.

They were made on the first 20,000 characters of the calibration text that is shipped (renew them when it changes), with
the tools of the llama.cpp in llama-cpp-python 0.3.36::

    llama-perplexity -m starter.gguf -f text.txt -c 256 --chunks 8
    llama-imatrix -m starter.gguf -f text.txt -c 256 --chunks 8 --no-ppl -o i.gguf
    llama-quantize --allow-requantize starter.gguf out.gguf q4_k_m

on a processor with AVX-512. One with AVX2 alone adds up in another order: there perplexity is 0.17 % higher, and a
column's largest sum up to 0.15 % off. A chunk more or less, or one token's logits by another's, are some percent.
"""

import pytest

from quant.chunks import Text
from quant.imatrix.collect import Calibration, collect_imatrix
from quant.imatrix.file import read_imatrix
from quant.imatrix.texts import default_texts
from quant.llama_quantize import quantize_gguf
from quant.measure.run import MeasureOptions, make_reference, measure
from tests.quant.digests import needs_fma, tensor_digest

pytestmark = pytest.mark.model

_CLOSE = 5e-3
_OPTIONS = MeasureOptions(n_ctx=256, max_chunks=8)
_PERPLEXITY, _STANDARD_ERROR = 21.2372, 1.83576
# Tokens, sum and largest of the squared inputs.
_IMATRIX = {
    "blk.0.attn_q.weight": (2691.1625, 643.5667),
    "blk.7.attn_output.weight": (29843.3131, 1746.9984),
    "blk.15.ffn_down.weight": (137974.7789, 2712.8049),
    "blk.29.ffn_down.weight": (41502842.47, 2410296.75),
    "blk.29.ffn_up.weight": (199272.1663, 107480.3828),
}
_Q4_K_M = "12c670f6f2639998237f5803858e4548faf8b9c151e66fc81fd9aeec7609f153"


def _texts() -> tuple[Text, ...]:
    return (Text("".join(text.text for text in default_texts()[0])[:20_000]),)


def test_perplexity_is_llama_perplexitys_and_the_divergence_from_itself_is_nothing(starter_path, tmp_path):
    found = make_reference(starter_path, tmp_path / "reference", _texts(), options=_OPTIONS)
    assert found.perplexity == pytest.approx(_PERPLEXITY, rel=_CLOSE)
    assert found.standard_error == pytest.approx(_STANDARD_ERROR, rel=_CLOSE)
    quality = measure(starter_path, reference=tmp_path / "reference", options=_OPTIONS)
    assert quality.divergence is not None
    assert quality.divergence.kl_max < 1e-6
    assert quality.divergence.agreement == 1


def test_the_importance_matrix_is_llama_imatrixs(starter_path, tmp_path):
    collect_imatrix(starter_path, tmp_path / "i.gguf", Calibration(_texts(), ("text.txt",), 256, 8))
    matrix = read_imatrix(tmp_path / "i.gguf")
    assert len(matrix.entries) == 210
    assert {entry.counts.tolist()[0] for entry in matrix.entries.values()} == {8 * 256}
    for name, (total, largest) in _IMATRIX.items():
        assert matrix.entries[name].sums.sum() == pytest.approx(total, rel=_CLOSE)
        assert matrix.entries[name].sums.max() == pytest.approx(largest, rel=_CLOSE)


@needs_fma
def test_the_tensors_are_llama_quantizes(starter_path, tmp_path):
    made = quantize_gguf(starter_path, tmp_path / "out.gguf", "q4_k_m")
    assert tensor_digest(tmp_path / "out.gguf") == _Q4_K_M
    block, again = made.plan.warnings
    assert "no multiple of its block" in block
    assert "quantized already (Q4_1" in again
