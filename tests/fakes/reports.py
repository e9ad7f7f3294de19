"""Reports with made-up figures."""

from localllm.models.manifest import Manifest
from quant.measure.run import Quality, Speed
from quant.measure.scores import Divergence, Perplexity
from quant.report.record import Report, Row, Skipped, in_order, report_path, save_report


def made_up_row(name, n_bytes, kl, *, kind="type", type="", speed=True, notes=()):  # noqa: A002  as the row has it
    quality = Quality(
        Perplexity(10 * (1 + kl), 0.25, 3060), Divergence(kl, kl / 20, 8 * kl, 30 * kl, 1 - min(kl, 0.9), 0.004)
    )
    found = Speed(1234.5, 98.7) if speed else None
    return Row(name, kind, type or name, "llama.cpp", n_bytes, n_bytes * 8 / 134e6, quality, found, notes)


def made_up_report(model: Manifest, rows=None, skipped=()) -> Report:
    """On a model of which ``rows`` are smaller forms; without, a usual set."""
    name = str(model.model_name)
    usual = (
        made_up_row("q8_0", 145_000_000, 0.0008),
        made_up_row("q6_k", 138_000_000, 0.0031),
        made_up_row(f"{model.name}:q4_k_m", 105_000_000, 0.019, kind="model", type="q4_k_m"),
        made_up_row("q5_0", 110_000_000, 0.027),
        made_up_row("q3_k_m", 94_000_000, 0.09),
        made_up_row("q2_k", 88_000_000, 0.31, notes=("Many matrices get another type than asked.",)),
    )
    source = made_up_row(name, 271_000_000, 0.0, kind="source", type=model.quantization.lower())
    return Report(
        name,
        tuple(file.sha256 for file in model.files),
        "our evaluation text",
        "ab" * 32,
        12,
        512,
        "default",
        "2026-01-02T03:04:05+00:00",
        in_order((source, *(usual if rows is None else rows))),
        tuple(Skipped(*item) for item in skipped),
    )


def put_report(home, model: Manifest, **changes) -> Report:
    """Keep one where the app looks for it."""
    report = made_up_report(model, **changes)
    save_report(report_path(home, model), report)
    return report
