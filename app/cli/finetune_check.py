"""``localllm finetune --check``: prints what is in the data and what training needs."""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from app.cli.follow_job import run_job
from app.cli.output import Progress, human_seconds
from localllm.memory import gigabytes
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.sanitize import one_line, printable

if TYPE_CHECKING:
    from finetune.check import Bin, CheckReport, Preview
    from finetune.recipe import Recipe

_BAD_SHOWN = 20
_BAR_CELLS = 40
_LEARNT, _PLAIN = "\x1b[32m", "\x1b[0m"


def run_check(recipe: "Recipe", home: Home, *, as_json: bool) -> int:
    """Check a recipe's data and print what was found, to standard output.

    Returns:
        0, or 1 where a row is bad.

    Raises:
        JobFailedError: Training does not fit in memory, or the model cannot be loaded.
    """
    # transformers looks for torch as it is imported, and says on standard error that there is none.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from finetune.check import check  # deferred: transformers and numpy, 2 s
    from finetune.data.files import find_files
    from finetune.data.hub import fetch_named

    store = ModelStore(home)
    with _Bars() as bars:
        fetched = fetch_named(recipe.data, home, say=_say, progress=bars.update)
        found = find_files(recipe.data, fetched)
        report = check(recipe, store, found=found, progress=bars.update)
    bad = bool(report.data.bad)
    needs: dict[str, Any] = {}
    if not as_json:
        _show(report)
    # A GGUF model would first have to be unpacked, and bad rows stop a training anyway.
    if store.resolve(recipe.model).format != "gguf" and report.n_train and (recipe.skip_bad or not bad):
        from finetune.plan_job import plan_spec

        commits = {text: rows.commit for text, rows in fetched.items()}
        run_job(home, plan_spec(recipe, commits), show=needs.update)
    if as_json:
        print(json.dumps({**asdict(report), "needs": needs or None}, indent=2, ensure_ascii=False))
    else:
        _show_needs(needs)
    return 1 if bad else 0


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr)


class _Bars(ExitStack):
    """One bar for each thing that is counted, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: dict[str, Progress] = {}

    def update(self, what: str, done: int, total: int | None) -> None:
        if what not in self._bars:
            self.close()
            self._bars[what] = self.enter_context(Progress(what, total, ""))
        self._bars[what].update(done, total)


def _show(report: "CheckReport") -> None:
    for line in report.data.lines():
        print(line)
    share = f" ({report.n_learnt / report.n_tokens:.0%})" if report.n_tokens else ""
    print(f"{report.n_train} examples to learn from, {report.n_valid} held out.")
    print(f"{report.n_tokens:,} tokens, {report.n_learnt:,} of them learnt{share}.")
    for bad in report.data.bad[:_BAD_SHOWN]:
        print(f"  {one_line(bad.source, 80)}: {one_line(bad.reason, 200)}")
    if (more := len(report.data.bad) - _BAD_SHOWN) > 0:
        print(f"  and {more} more: --json shows all")
    if report.histogram:
        print("\nTokens of an example:")
        _show_histogram(report.histogram)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for shown in report.previews:
        _show_preview(shown, colour=colour)


def _show_histogram(bins: "tuple[Bin, ...]") -> None:
    most = max(each.count for each in bins)
    labels = [f"{each.low}-{each.high}" for each in bins]
    width = max(map(len, labels))
    for label, each in zip(labels, bins, strict=True):
        bar = "█" * max(round(_BAR_CELLS * each.count / most), bool(each.count))
        print(f"  {label:>{width}}  {bar} {each.count}".rstrip())


def _show_preview(shown: "Preview", *, colour: bool) -> None:
    how = "green" if colour else "between « and »"
    print(f"\n{one_line(shown.source, 80)}, what is learnt {how}:")
    before, after = (_LEARNT, _PLAIN) if colour else ("«", "»")
    texts = [
        f"{before}{printable(piece.text)}{after}" if piece.learnt else printable(piece.text) for piece in shown.pieces
    ]
    print("".join(texts))


def _show_needs(needs: dict[str, Any]) -> None:
    if not needs:
        print("\nMemory and time are measured when training starts.")
        return
    print(
        f"\nTraining needs about {gigabytes(needs['peak'])} of the {gigabytes(needs['budget'])} that may be used, and "
        f"about {human_seconds(needs['seconds'])} for {needs['updates']} updates."
    )
    if needs["note"]:
        print(needs["note"])
