"""The equivalence gate: does an exported form predict what the model with its adapter predicts in MLX?

Each form runs in a child process of its own, one after the other, so that only one is in memory.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.gate_limits import Limits
from finetune.gate_rows import GateRows
from localllm.errors import GateError
from quant.child import CheckCancelled, Progress, never_cancelled, no_progress, run_child
from quant.measure.scores import Divergence

_WORKER = "finetune.gate_worker"


@dataclass(frozen=True)
class Engine:
    """How the forms are run.

    Attributes:
        n_threads: CPU threads.
        cpu: Without a GPU, even where there is one.
        widen: Compute MLX's forms in float32: as exact as the limits want it, where the memory allows it.
    """

    n_threads: int
    cpu: bool
    widen: bool


@dataclass(frozen=True)
class Difference:
    """The first place where another token comes first.

    Attributes:
        row: Number of the row.
        position: Of the token after which they differ.
        expected: The token that the reference puts first.
        found: The one that the form puts first.
    """

    row: int
    position: int
    expected: int
    found: int


@dataclass(frozen=True)
class Verdict:
    """What the gate says about a form.

    Attributes:
        form: What it is called.
        divergence: From the reference.
        limits: What is allowed.
        difference: Where they first differ; None where they never do.
    """

    form: str
    divergence: Divergence
    limits: Limits
    difference: Difference | None

    @property
    def passes(self) -> bool:
        """Whether it is within the limits."""
        return self.divergence.agreement >= self.limits.agreement and self.divergence.kl_mean <= self.limits.kl

    def line(self) -> str:
        """A row of the table."""
        found, limits = self.divergence, self.limits
        return (
            f"{self.form:<16} {found.agreement:>7.2%} (>= {limits.agreement:.0%})  {found.kl_mean:>9.2g} "
            f"(<= {limits.kl:g})  {found.kl_99:>9.2g}  {'ok' if self.passes else 'OVER THE LIMIT'}"
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "passes": self.passes}


HEADER = f"{'form':<16} {'agreement':>16}  {'mean KL, nats':>20}  {'99 % below':>9}"


class Gate:
    """A reference on some rows, and the forms that are compared with it.

    Args:
        rows: What they predict on.
        work: A directory for what the reference predicts.
        engine: How they run.
        progress: Called with ("row", done, total) while one runs.
        check_cancelled: Called ten times a second; what it raises ends the work.
    """

    def __init__(
        self,
        rows: GateRows,
        work: Path,
        engine: Engine,
        progress: Progress = no_progress,
        check_cancelled: CheckCancelled = never_cancelled,
    ) -> None:
        self._rows_file, self._kept = work / "rows.npz", work / "reference.npz"
        self._engine = engine
        self._progress = progress
        self._check_cancelled = check_cancelled
        tokens = np.concatenate(rows.rows)
        np.savez(self._rows_file, tokens=tokens, lengths=[len(row) for row in rows.rows], first=rows.first)

    def keep_reference(self, model: Path, adapter: Path | None) -> None:
        """Run the reference: a directory that MLX loads, with its adapter.

        Raises:
            InvalidModelError: One of them is damaged, or the adapter is for another model.
        """
        self._ask(model, adapter, compare=False)

    def compare(self, form: str, model: Path, limits: Limits, adapter: Path | None = None) -> Verdict:
        """Run a form: a GGUF file or a directory; with an adapter in its own form where it has one.

        Raises:
            InvalidModelError: It is damaged.
            QuantizeError: It has other tokens, or its engine crashed.
        """
        found = self._ask(model, adapter, compare=True)
        difference = Difference(**found["difference"]) if found["difference"] else None
        return Verdict(form, Divergence(**found["divergence"]), limits, difference)

    def _ask(self, model: Path, adapter: Path | None, *, compare: bool) -> dict[str, Any]:
        request = {
            "model": str(model),
            "adapter": str(adapter) if adapter else None,
            "rows": str(self._rows_file),
            "target": str(self._kept),
            "compare": compare,
            **asdict(self._engine),
        }
        what = f"checking {model.name}"
        return run_child(_WORKER, request, what=what, progress=self._progress, check_cancelled=self._check_cancelled)


def explain(difference: Difference, rows: GateRows, decode: Callable[[list[int]], str]) -> str:
    """A difference for a person: the text before it, and the two tokens."""
    row = rows.rows[difference.row]
    before = decode(row[max(0, difference.position - 11) : difference.position + 1].tolist())
    return (
        f"They first differ after {before!r}: {decode([difference.expected])!r} as trained, "
        f"{decode([difference.found])!r} as exported."
    )


def refuse(verdict: Verdict, name: str, trained: str) -> GateError:
    """Why an export is not kept."""
    found, limits = verdict.divergence, verdict.limits
    return GateError(
        f"{name} does not predict what {trained} predicts: {found.agreement:.1%} of its tokens are the same "
        f"(at least {limits.agreement:.0%}), and it is {found.kl_mean:.2g} nats away (at most {limits.kl:g}).",
        "Nothing was kept. Export a larger type, or take it as it is with --ignore-gate.",
    )
