"""Measuring models: GGUF and MLX by the same numbers, and a source against itself."""

import mlx.core as mx
import numpy as np
import pytest

from localllm.errors import InvalidModelError, JobCancelledError, QuantizeError
from localllm.gguf_header import read_gguf_header
from quant.chunks import Text
from quant.convert import from_gguf
from quant.llama_quantize import quantize_gguf
from quant.measure import worker
from quant.measure.reference import Reference
from quant.measure.run import MeasureOptions, make_reference, measure, measure_speed
from quant.measure.scores import Perplexity, negative_log_likelihoods
from quant.mlx_quantize import quantize_mlx
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.mlx_models import make_model

_TEXTS = (Text("the hello world is a world of hello and the user asks: what? " * 20),)
_OPTIONS = MeasureOptions(n_ctx=64, max_chunks=3, n_threads=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    import gguf

    path = tmp_path_factory.mktemp("source") / "m.gguf"
    return write_tiny_gguf(path, n_embd=64, n_ff=128, tensor_type=gguf.GGMLQuantizationType.F32)


@pytest.fixture(scope="module")
def reference(source):
    target = source.with_name("reference")
    make_reference(source, target, _TEXTS, options=_OPTIONS)
    return target


def test_a_source_does_not_diverge_from_itself(source, reference):
    quality = measure(source, reference=reference, options=_OPTIONS)
    assert quality.divergence is not None
    assert quality.divergence.kl_max < 1e-9
    assert quality.divergence.agreement == 1
    assert quality.perplexity == measure(source, _TEXTS, options=_OPTIONS).perplexity
    assert quality.perplexity.n_tokens == 3 * 31  # the second half of each chunk but its last token


def test_fewer_bits_diverge_more(source, reference, tmp_path):
    found = []
    for name in ("q8_0", "q4_0"):
        quantize_gguf(source, tmp_path / f"{name}.gguf", name, n_threads=1)
        quality = measure(tmp_path / f"{name}.gguf", reference=reference, options=_OPTIONS)
        assert quality.divergence is not None
        found.append(quality.divergence.kl_mean)
    assert 0 < found[0] < found[1]


def test_mlx_is_measured_on_the_same_tokens(source, reference, tmp_path):
    from_gguf(source, tmp_path / "hf", dtype="f32")
    quality = measure(tmp_path / "hf", reference=reference, options=_OPTIONS)
    assert quality.divergence is not None
    assert quality.divergence.kl_max < 1e-4
    assert quality.perplexity.perplexity == pytest.approx(
        measure(source, reference=reference, options=_OPTIONS).perplexity.perplexity, rel=1e-3
    )


def test_what_mlx_unpacks_to_be_measured_is_what_it_serves(source, reference, tmp_path):
    from mlx_lm.utils import load_model

    quantize_mlx(source, tmp_path / "packed", "mlx-4bit")
    found = measure(tmp_path / "packed", reference=reference, options=_OPTIONS)
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        model, _ = load_model(tmp_path / "packed")
        losses = []
        for chunk in Reference.open(reference).tokens.tolist():
            logits = np.array(model(mx.array([chunk]))[0].astype(mx.float32))[len(chunk) // 2 : -1]
            losses.append(negative_log_likelihoods(logits, np.array(chunk[len(chunk) // 2 + 1 :])))
    finally:
        mx.set_default_device(before)
    served = Perplexity.of(np.concatenate(losses)).perplexity
    assert found.perplexity.perplexity == pytest.approx(served, rel=2e-3)  # served in 16 bits
    assert found.divergence is not None
    assert found.divergence.kl_mean > 1e-5


def test_models_with_other_tokens_are_not_compared(source, tmp_path):
    other = make_model(tmp_path / "other")
    make_reference(other, tmp_path / "reference", _TEXTS, options=_OPTIONS)
    with pytest.raises(QuantizeError, match="275 tokens and its source 384"):
        measure(source, reference=tmp_path / "reference", options=_OPTIONS)


def test_a_damaged_reference_is_refused(source, reference, tmp_path):
    with pytest.raises(InvalidModelError, match="holds no reference"):
        measure(source, reference=tmp_path, options=_OPTIONS)
    work = tmp_path / "copy"
    make_reference(source, work, _TEXTS, options=_OPTIONS)
    np.save(work / "rest.npy", np.zeros((1, 1), np.float32))
    with pytest.raises(InvalidModelError, match="damaged"):
        measure(source, reference=work, options=_OPTIONS)


def test_a_model_that_computes_nonsense_is_named(source, reference, tmp_path):
    broken = tmp_path / "broken.gguf"
    raw = bytearray(source.read_bytes())
    norm = next(tensor for tensor in read_gguf_header(source).tensors if tensor.name == "output_norm.weight")
    raw[norm.offset : norm.offset + 4] = np.float32("nan").tobytes()
    broken.write_bytes(raw)
    with pytest.raises(QuantizeError, match="no numbers"):
        measure(broken, reference=reference, options=_OPTIONS)


def test_a_cancelled_reference_leaves_nothing(source, tmp_path):
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise JobCancelledError

    with pytest.raises(JobCancelledError):
        make_reference(source, tmp_path / "r", _TEXTS * 50, options=MeasureOptions(n_ctx=64), check_cancelled=cancel)
    assert list(tmp_path.iterdir()) == []


def test_speed_is_tokens_a_second(source):
    speed = measure_speed(source, n_prefill=32, n_decode=8, n_threads=1)
    assert speed.prefill > 0
    assert speed.decode > 0


class Slow:
    """A model that takes a certain time for each token, on a clock of its own; the first call reads the disk."""

    n_vocab = 100

    def __init__(self, seconds_a_token):
        self.now, self.seconds, self.calls = 0.0, seconds_a_token, []

    def run(self, tokens, *, position=0, first_logit=0):
        self.now += self.seconds * len(tokens) + (0 if self.calls else 60)
        self.calls.append(len(tokens))


@pytest.mark.parametrize(("seconds", "longest", "at_most"), [(0.001, 512, 10), (0.1, 16, 60), (4.0, 2, 120)])
def test_a_slow_model_is_asked_for_less(monkeypatch, seconds, longest, at_most):
    model = Slow(seconds)
    monkeypatch.setattr("quant.measure.worker.time.perf_counter", lambda: model.now)
    found = worker._speed(model, 512, 512, 128)
    assert found["prefill"] == pytest.approx(1 / seconds)
    assert found["decode"] == pytest.approx(1 / seconds)
    assert max(model.calls) == longest
    assert model.now - 60 < at_most
