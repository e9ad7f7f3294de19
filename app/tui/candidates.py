"""What a model could become, and whether that would fit. Everything here touches the disk: call it in a thread."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from app.tui.widgets.scatter import Role, Spot
from localllm.errors import UsageError
from localllm.memory import MachineMemory, ModelShape, fit, gigabytes, machine_memory
from localllm.memory_safetensors import files_shape
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore
from quant.child import no_progress
from quant.llama_types import FILE_TYPES
from quant.quantize_job import QuantizeWish, plan_quantize, quantize_spec
from quant.report.plot import foot, short_name
from quant.report.record import Report, Row, kept_report

# The largest first. Not here: floats (that is an export), types for models trained in them, and old forms.
TYPES = (
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q4_k_m",
    "q4_k_s",
    "iq4_xs",
    "q3_k_m",
    "iq3_m",
    "iq3_xxs",
    "q2_k",
    "iq2_m",
    "iq2_xs",
    "iq1_m",
)


@dataclass(frozen=True)
class Candidate:
    """One type that the model could have.

    Attributes:
        name: Of the type.
        n_bytes: Of the file.
        bits: Per weight, over all parameters.
        exact: llama.cpp has planned it, or a report measured it; until then both figures are estimates.
        fits: Whether it fits in this machine's memory.
        needs: What it takes there, in words.
        notes: What to know before it is made.
        kl: Mean divergence from the model in nats a token, where a report has measured it.
        perplexity: On the report's text.
    """

    name: str
    n_bytes: int
    bits: float
    exact: bool
    fits: bool
    needs: str
    notes: tuple[str, ...]
    kl: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Compression:
    """What can be made of one model.

    Attributes:
        store: Where it is.
        model: It.
        n_ctx, memory_gb: As the settings have them.
        report: What was measured of it.
    """

    store: ModelStore
    model: Manifest
    n_ctx: int = 0
    memory_gb: float = 0
    report: Report | None = None

    @classmethod
    def of(cls, store: ModelStore, name: str, n_ctx: int, memory_gb: float) -> "Compression":
        """With the last report on the model, where there is one.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        model = store.resolve(name)
        return cls(store, model, n_ctx, memory_gb, kept_report(store.home, model))

    def estimates(self) -> list[Candidate]:
        """Every type, with what a report has measured, else with figures of large models.

        Raises:
            InvalidModelError: The model is damaged.
        """
        shape, machine = files_shape(self.store.paths(self.model)), machine_memory(self.memory_gb)
        names = [name for name in TYPES if name != self.model.quantization.lower()]
        found = []
        for name in names:
            row, bits = self._row(name), FILE_TYPES[name].bits
            n_bytes, bits = (row.n_bytes, row.bits) if row else (int(self.model.parameters * bits / 8), bits)
            candidate = self._candidate(name, n_bytes, bits, (), shape, machine)
            found.append(replace(candidate, exact=row is not None))
        return found

    def plans(self, estimates: list[Candidate], check_cancelled: Callable[[], None]) -> Iterator[Candidate]:
        """The same with llama.cpp's own figures, one after the other; of GGUF models only.

        A directory would have to be converted first: its estimates stay.

        Raises:
            LocalLLMError: As ``check_cancelled`` does, and where the model is damaged.
        """
        if self.model.format != "gguf":
            return
        shape, machine = files_shape(self.store.paths(self.model)), machine_memory(self.memory_gb)
        for estimate in estimates:
            check_cancelled()
            try:
                spec, here = quantize_spec(self.store, QuantizeWish(str(self.model.model_name), estimate.name))
                work = self.store.home.partial
                plan = plan_quantize(self.store, spec, work, progress=no_progress, check_cancelled=check_cancelled)
            except UsageError as error:
                yield replace(estimate, notes=(*estimate.notes, error.message))
                continue
            notes = (*(("It is here already.",) if here else ()), *plan.warnings)
            made = self._candidate(estimate.name, plan.n_bytes, plan.bits, notes, shape, machine)
            yield replace(made, exact=True)

    def _row(self, name: str) -> Row | None:
        return self.report.row_of_type(name) if self.report else None

    def _candidate(
        self, name: str, n_bytes: int, bits: float, notes: tuple[str, ...], shape: ModelShape, machine: MachineMemory
    ) -> Candidate:
        found = fit(replace(shape, weights=n_bytes), machine, self.n_ctx)
        needs = f"{gigabytes(found.need.total)} with {found.n_ctx:,} tokens of context"
        kind = FILE_TYPES[name]
        imatrix = {
            "required": ("Needs an importance matrix, which is measured first.",),
            "recommended": ("An importance matrix is measured first.",),
        }.get(kind.imatrix, ())
        row = self._row(name)
        kl, perplexity = (row.kl, row.quality.perplexity.perplexity) if row else (None, None)
        return Candidate(name, n_bytes, bits, False, found.fits, needs, (*imatrix, *notes), kl, perplexity)


def spots_of(report: Report) -> list[Spot]:
    """What was measured, for the plot in the terminal; the same picture as the report's own."""
    least = foot(report.rows)
    return [Spot(short_name(row, report), row.n_bytes, max(row.kl, least), _role(row, report)) for row in report.rows]


def _role(row: Row, report: Report) -> Role:
    if row.kind == "source":
        return "source"
    return "beaten" if row.beaten_by else "best" if row == report.recommended else "frontier"
