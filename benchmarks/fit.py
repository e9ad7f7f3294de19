"""``--fit`` beside the K types: at the same bytes and with the same importance matrix, which loses less?

    python -m benchmarks.fit MODEL.gguf --text TEST.txt [--types q3_k_m,q4_k_m,q5_k_m] [--work DIRECTORY]

For every type: MODEL is quantized to it, and what its tensors take becomes the budget of ``--fit``, to the byte. Both
are compared with MODEL on TEXT, which must not be the calibration text, on which the importance matrix and the
sensitivities are measured: a text of one's own, or WikiText-2's test set. The KV cache is no part of the budget; it is
the same for both, and its size is printed.

MODEL should be F16 with rows that are a multiple of 256 (``benchmarks.padded_starter``). A quantized MODEL is unpacked
to F16 first, and that is then the source of both. What is measured of a model (importance matrix, sensitivities, and
the reference on TEXT) is kept in the work directory for the next run. With ``--like`` the sensitivities that were kept
of another model of the family serve MODEL: what does it cost to measure only one of them?
"""

import argparse
import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.gguf_header import GGUFHeader, read_gguf_header
from localllm.memory import model_shape
from quant.child import never_cancelled
from quant.chunks import Text
from quant.convert import from_gguf, to_gguf
from quant.fit.plan import FitPlan, plan_fit
from quant.fit.sensitivity import DEFAULT_OPTIONS, Sensitivity, measure_sensitivity, read_sensitivity
from quant.fit.text import probing_texts
from quant.imatrix.collect import Calibration, collect_imatrix
from quant.imatrix.texts import default_texts
from quant.llama_quantize import QuantizeResult, quantize_gguf
from quant.llama_types import FLOAT_TYPES
from quant.measure.run import MeasureOptions, Quality, make_reference, measure

_ALIGNMENT = 32
_KV_CONTEXT = 8192


@dataclass(frozen=True)
class Bench:
    """What every comparison of one model shares.

    Attributes:
        source: The model, in floats.
        header: Its header.
        imatrix: Its importance matrix.
        sensitivity: What ``--fit`` measured of it.
        reference: What it predicts for the text.
        options: How quality is measured.
        work: For the models that are made.
    """

    source: Path
    header: GGUFHeader
    imatrix: Path
    sensitivity: Sensitivity
    reference: Path
    options: MeasureOptions
    work: Path


@dataclass(frozen=True)
class Row:
    """One made model.

    Attributes:
        name: Its type, or ``--fit``.
        n_bytes: Of its tensors.
        bits: Over all parameters.
        quality: On the text.
    """

    name: str
    n_bytes: int
    bits: float
    quality: Quality


def prepare(model: Path, text: Path, n_chunks: int, work: Path, like: Path | None) -> Bench:
    """Measure what is not in ``work`` yet."""
    source = _plain(model, work)
    header = read_gguf_header(source)
    imatrix = work / f"{source.stem}-imatrix.gguf"
    if not imatrix.exists():
        _say("importance matrix")
        collect_imatrix(source, imatrix, Calibration(*default_texts()))
    options = MeasureOptions(max_chunks=n_chunks)
    words = text.read_text(encoding="utf-8", errors="replace")
    digest = hashlib.sha256(f"{n_chunks} {words}".encode()).hexdigest()[:8]
    reference = work / f"{source.stem}-{digest}-reference"
    if not reference.exists():
        _say(f"what the source predicts for {text.name}")
        make_reference(source, reference, [Text(words)], options=options)
    return Bench(source, header, imatrix, _sensitivity(source, imatrix, work, like), reference, options, work)


def _plain(model: Path, work: Path) -> Path:
    """The model itself; of a quantized one, its unpacked form in F16."""
    kind = read_gguf_header(model).quantization
    if kind in FLOAT_TYPES:
        return model
    target = work / f"{model.stem}-f16.gguf"
    if not target.exists():
        _say(f"{model.name} is {kind}: it is unpacked to F16, which is the source of everything below")
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            from_gguf(model, Path(scratch, "plain"), dtype="f32")
            to_gguf(Path(scratch, "plain"), target, type="f16", name=model.stem)
    return target


def _sensitivity(source: Path, imatrix: Path, work: Path, like: Path | None) -> Sensitivity:
    kept = work / f"{source.stem}{f'-like-{like.stem}' if like else ''}-sensitivity.json"
    if kept.exists():
        try:
            return read_sensitivity(kept)
        except InvalidModelError as error:
            _say(error.message)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        found = measure_sensitivity(
            source,
            imatrix,
            probing_texts(),
            Path(scratch),
            like=read_sensitivity(like) if like else None,
            options=DEFAULT_OPTIONS,
            progress=lambda item, done, total: _say(f"{item} ({done} of {total})"),
            check_cancelled=never_cancelled,
        )
    _say(f"sensitivities measured in {time.perf_counter() - start:.0f} s")
    found.save(kept)
    return found


def compare(bench: Bench, name: str) -> tuple[Row, Row, FitPlan]:
    """The type ``name``, and ``--fit`` in the bytes that its tensors take."""
    theirs, budget, quality = _make(bench, name, ())
    plan = plan_fit(bench.header, bench.sensitivity, budget)
    made, n_bytes, fitted = _make(bench, plan.base, plan.overrides)
    return (
        Row(name, budget, theirs.plan.bits, quality),
        Row("--fit", n_bytes, made.plan.bits, fitted),
        plan,
    )


def _make(bench: Bench, name: str, overrides: tuple[str, ...]) -> tuple[QuantizeResult, int, Quality]:
    """A model, the bytes of its tensors with their padding, and how good it is."""
    with tempfile.TemporaryDirectory(dir=bench.work) as scratch:
        target = Path(scratch, "made.gguf")
        made = quantize_gguf(bench.source, target, name, imatrix=bench.imatrix, overrides=overrides)
        n_bytes = sum(-(-tensor.n_bytes // _ALIGNMENT) * _ALIGNMENT for tensor in read_gguf_header(target).tensors)
        return made, n_bytes, measure(target, reference=bench.reference, options=bench.options)


def _line(row: Row) -> str:
    found, perplexity = row.quality.divergence, row.quality.perplexity
    assert found is not None
    return (
        f"| {row.name} | {row.n_bytes:,} | {row.bits:.3f} | {found.kl_mean:.5f} +- {found.kl_standard_error:.5f} "
        f"| {found.kl_99:.4f} | {100 * found.agreement:.2f} % "
        f"| {perplexity.perplexity:.3f} +- {perplexity.standard_error:.3f} |"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Print the table; 1 when a K type loses less than ``--fit``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--types", default="q3_k_m,q4_k_m,q5_k_m")
    parser.add_argument("--chunks", type=int, default=32, help="of 512 tokens; the second half of each is scored")
    parser.add_argument("--work", type=Path, help="where what was measured is kept; a temporary one by default")
    parser.add_argument("--like", type=Path, help="what was kept in the work directory of another model of the family")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        bench = prepare(args.model, args.text, args.chunks, work, args.like)
        need = model_shape(bench.header).need(_KV_CONTEXT)
        print(f"{bench.source.name}; beside the tensors, {_KV_CONTEXT} tokens of KV cache take {need.kv_cache:,} bytes")
        print("| type | bytes of tensors | bits | KL mean | KL 99 % | agreement | perplexity |\n" + "|---" * 7 + "|")
        lost = 0
        for name in args.types.split(","):
            theirs, ours, plan = compare(bench, name)
            print(f"{_line(theirs)}\n{_line(ours)}", flush=True)
            assert ours.n_bytes <= theirs.n_bytes
            assert theirs.quality.divergence is not None
            assert ours.quality.divergence is not None
            ratio = ours.quality.divergence.kl_mean / theirs.quality.divergence.kl_mean
            _say(f"{name}: --fit has {ratio:.2f} of its KL (predicted {plan.predicted_kl:.5f} nats)")
            lost += ratio >= 1
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
