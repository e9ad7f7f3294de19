"""``localllm quantize MODEL --report``: what smaller forms of a model lose, as a table and a plot."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.output import display_width, human_bytes, print_table
from localllm.errors import UsageError
from localllm.paths import Home
from localllm.sanitize import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from quant.report.record import Report, Row

_NOTHING = "-"
# What is left out first where the table is too wide.
_EXPENDABLE = ("KL 99%", "read/write", "top-1", "bits")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the report's arguments."""
    parser.add_argument(
        "--report",
        action="store_true",
        help="measure the model beside its smaller forms: those that are here, and types that are tried",
    )
    parser.add_argument(
        "--types", metavar="TYPES", help="with --report: types to try, as q8_0,q4_k_m,mlx-4bit; none for none"
    )
    parser.add_argument("--text", default="", metavar="FILE", help="with --report: a text to judge on, not our own")
    parser.add_argument(
        "--chunks", type=int, default=0, metavar="N", help="with --report: at most N chunks of the text"
    )
    parser.add_argument("--no-speed", action="store_true", help="with --report: do not measure tokens a second")


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: They do not.
    """
    if not args.report:
        if args.types is not None or args.text or args.chunks or args.no_speed:
            raise UsageError("--types, --text, --chunks and --no-speed go with --report.")
        return
    if args.override or args.as_name or args.dry_run:
        raise UsageError("--override, --as and --dry-run do not go with --report: it keeps no model.")
    if args.chunks < 0:
        raise UsageError("--chunks is a number of chunks, at least 1; leave it out for the whole text.")


def run(args: argparse.Namespace, home: Home) -> int:
    """Measure as a job, then print what was found."""
    # Deferred, as in `quantize`: the formats bring numpy (100 ms), which `--help` does not need.
    from app.cli.follow_job import run_job
    from localllm.models.store import ModelStore
    from quant.report.job import ReportWish, report_spec

    types = None if args.types is None else _types(args.types)
    wish = ReportWish(args.model, types, args.imatrix, args.text, args.chunks, speed=not args.no_speed)
    spec = report_spec(ModelStore(home), wish)
    return run_job(home, spec, detach=args.detach, show=_json if args.json else _show)


def _types(text: str) -> tuple[str, ...]:
    names = tuple(name for name in (part.strip() for part in text.split(",")) if name)
    return () if names == ("none",) else names


def _json(result: dict[str, Any]) -> None:
    print(Path(result["path"]).read_text(encoding="utf-8"), end="")


def _show(result: dict[str, Any]) -> None:
    from quant.report.record import read_report

    report = read_report(Path(result["path"]))
    print_report(report, _width())
    print(f"Plot: {result['plot']}")


def print_report(report: "Report", width: int = 0) -> None:
    """The table, what follows from it, and what it was measured on.

    Args:
        report: What was measured.
        width: Columns of the terminal; 0 where there is no limit. What matters least is left out to stay within.
    """
    from quant.report.plot import short_name

    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda row: _marked(row, report) + short_name(row, report),
        "size": lambda row: human_bytes(row.n_bytes),
        "bits": lambda row: f"{row.bits:.2f}",
        "perplexity": lambda row: (
            f"{row.quality.perplexity.perplexity:.2f} ±{row.quality.perplexity.standard_error:.2f}"
        ),
        "KL": lambda row: _figure(row.kl),
        "KL 99%": lambda row: _figure(row.divergence.kl_99),
        "top-1": lambda row: f"{row.divergence.agreement:.1%}",
        "read/write": lambda row: f"{_rate(row.speed.prefill)}/{_rate(row.speed.decode)}" if row.speed else _NOTHING,
    }
    if not any(row.speed for row in report.rows):
        del columns["read/write"]
    cells = {name: [cell(row) for row in report.rows] for name, cell in columns.items()}
    for name in _EXPENDABLE:
        if width and _needed(cells) > width:
            cells.pop(name, None)
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    print_table(list(cells), rows, right=range(1, len(cells)))
    print()
    for line in _lines(report):
        print(one_line(line))
    for note in _notes(report):
        print(one_line(f"Note: {note}"), file=sys.stderr)


def _lines(report: "Report") -> list[str]:
    lines = [report.advice, *report.warnings]
    lines += [f"Not measured: {item.name}. {item.reason}" for item in report.skipped]
    lines.append(
        f"On {report.n_chunks} chunks of {report.n_ctx} tokens of {report.text} (SHA-256 {report.text_sha256[:12]}…); "
        f"importance matrix: {report.imatrix}."
    )
    return lines


def _notes(report: "Report") -> list[str]:
    """Each once, with all that it is said of."""
    names: dict[str, list[str]] = {}
    for row in report.rows:
        for note in row.notes:
            names.setdefault(note, []).append(row.name)
    return [f"{', '.join(said_of)}: {note}" for note, said_of in names.items()]


def _marked(row: "Row", report: "Report") -> str:
    return "> " if row == report.recommended else "  "


def _figure(value: float) -> str:
    """A divergence with three digits that count; rounding errors are 0."""
    return "0" if value < 1e-6 else f"{value:.2e}" if value < 1e-4 else f"{value:.4f}" if value < 10 else f"{value:.2f}"


def _rate(per_second: float) -> str:
    """Tokens a second; a slow model's is not rounded to nothing."""
    return f"{per_second:.0f}" if per_second >= 9.95 else f"{per_second:.2g}"


def _needed(cells: dict[str, list[str]]) -> int:
    widths = [max(map(display_width, (name, *column))) for name, column in cells.items()]
    return sum(widths) + 2 * (len(widths) - 1)


def _width() -> int:
    if not sys.stdout.isatty():
        return 0
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns
