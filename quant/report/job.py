"""What ``localllm quantize MODEL --report`` does, as a job: measure a model and its smaller forms side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError, QuantizeError, UsageError
from localllm.files import write_atomic
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message
from localllm.jobs.record import JobSpec
from localllm.machine import read_machine
from localllm.models.manifest import Manifest
from localllm.models.register import RECIPE
from localllm.models.store import ModelStore
from localllm.typed_paths import is_file, typed_path
from quant.importance import CHATS, DEFAULT, NONE, ImportanceChoice
from quant.llama_types import FILE_TYPES, find_file_type
from quant.measure.run import MeasureOptions
from quant.mlx_types import MLX_TYPES, mlx_type_name
from quant.report.bench import Bench, Conditions
from quant.report.kept import digests
from quant.report.lineage import relatives
from quant.report.plot import quality_plot
from quant.report.record import Report, Row, Skipped, as_json, in_order, report_path, save_report
from quant.report.subjects import Subject
from quant.report.text import judging_text

# A step of size from one to the next that is worth a choice; MLX's where it is at home.
USUAL_TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_xxs", "q2_k")
_USUAL_MLX_TYPES = ("mlx-8bit", "mlx-4bit")
_MAX_CTX = 512
_EMBEDDER = "bert"  # the one architecture of embedders that is known here, by GGUF's name and by Hugging Face's


@dataclass(frozen=True)
class ReportWish:
    """What a person asks.

    Attributes:
        model: Its name in the store.
        types: To be tried; None for the usual ones that are smaller than the model.
        imatrix: See :class:`quant.importance.ImportanceChoice`.
        text: A text file to judge on; empty for our own.
        n_chunks: At most so many chunks of it; 0 for all.
        speed: Measure tokens a second too.
    """

    model: str
    types: tuple[str, ...] | None = None
    imatrix: str = DEFAULT
    text: str = ""
    n_chunks: int = 0
    speed: bool = True


def report_spec(store: ModelStore, wish: ReportWish) -> JobSpec:
    """The job that measures.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: A type or file is none, the importance matrix would be computed on the text that is judged on, or
            the model predicts no text.
        QuantizeError: The text cannot be read.
    """
    source = store.resolve(wish.model)
    if source.architecture == _EMBEDDER:
        raise UsageError(f"{source.model_name} is an embedder: it predicts no text that it could be judged by.")
    text = ""
    if wish.text:
        path = typed_path(wish.text)
        if not is_file(path):
            raise UsageError(f"{wish.text!r} is no file to judge models on.", "Give a text file.")
        text = str(path)
    imatrix = ImportanceChoice.parse(wish.imatrix).kind
    judging_text(text, imatrix)
    types = _usual_types(source) if wish.types is None else _asked_types(source, wish.types)
    arguments = {
        "model": str(source.model_name),
        "types": types,
        "imatrix": imatrix,
        "text": text,
        "chunks": wish.n_chunks,
        "speed": wish.speed,
    }
    title = f"on {source.model_name}"
    return JobSpec("report", title, "quant.report.job:report", arguments, resumable=True)


def report(context: JobContext) -> dict[str, Any]:
    """Measure; the result holds the ``report``, the ``plot``'s path and a ``summary``."""
    store, arguments = ModelStore(context.home), context.arguments
    source = store.resolve(arguments["model"])
    imatrix = ImportanceChoice(arguments["imatrix"])
    n_ctx = min(source.n_ctx_train or _MAX_CTX, _MAX_CTX)
    conditions = Conditions(
        judging_text(arguments["text"], imatrix.kind),
        imatrix,
        MeasureOptions(n_ctx, arguments["chunks"] or None),
        arguments["speed"],
    )
    workspace = store.workspace
    waits = partial(context.emit, Message("info", f"Another process measures {source.model_name}: waiting for it."))
    key = workspace.key(f"report on {source.model_name}")
    with context.interruptible(), workspace.exclusive(key, waits) as work:
        try:
            bench = Bench(context, source, conditions, work)
            rows, skipped = _measure_all(context, bench, _subjects(store, source, arguments))
            bench.close()
        finally:
            workspace.discard(work)
    skipped += _unreadable(store, source)
    scored = n_ctx - n_ctx // 2 - 1  # of a chunk
    found = Report(
        str(source.model_name),
        tuple(digests(source)),
        conditions.text.name,
        conditions.text.sha256,
        rows[0].quality.perplexity.n_tokens // scored,
        n_ctx,
        imatrix.kind if imatrix.kind in (DEFAULT, CHATS, NONE) else Path(imatrix.kind).name,
        datetime.now(UTC).isoformat(timespec="seconds"),
        in_order(rows),
        tuple(skipped),
    )
    return _put_away(context, source, found)


def _measure_all(context: JobContext, bench: Bench, subjects: Sequence[Subject]) -> tuple[list[Row], list[Skipped]]:
    """What cannot be measured is named, and the others are measured all the same; the source must be."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for index, subject in enumerate(subjects):
        try:
            rows.append(bench.measure(subject, f"{index + 1}/{len(subjects)} {subject.name}"))
        except (InvalidModelError, QuantizeError, UsageError) as error:
            if subject.kind == "source":
                raise
            skipped.append(Skipped(subject.name, str(error)))
            context.emit(Message("warning", f"{subject.name} is left out: {error}"))
    return rows, skipped


def _put_away(context: JobContext, source: Manifest, found: Report) -> dict[str, Any]:
    kept, picture = report_path(context.home, source), quality_plot(found)
    save_report(kept, found)
    plot = kept.with_suffix(".svg")
    write_atomic(plot, picture)
    write_atomic(context.out / "report.json", as_json(found))
    write_atomic(context.out / "report.svg", picture)
    return {
        "report": asdict(found),
        "recommended": found.recommended and found.recommended.name,
        "path": str(kept),
        "plot": str(plot),
        "summary": found.advice,
    }


def _subjects(store: ModelStore, source: Manifest, arguments: dict[str, Any]) -> list[Subject]:
    """The source, then what is in the store, then the types that are not there as they would be made here."""
    found = [Subject(str(source.model_name), "source", source.quantization.lower(), source)]
    there = set()
    for model in relatives(store, source):
        recipe = model.extra.get(RECIPE)
        to = recipe.get("to") if isinstance(recipe, dict) else None
        if to and _is_plainly(model, source, to, arguments["imatrix"]):
            there.add(to)
        found.append(Subject(str(model.model_name), "model", str(to or model.variant), model))
    return found + [Subject(name, "type", name) for name in arguments["types"] if name not in there]


def _is_plainly(model: Manifest, source: Manifest, to: str, imatrix: str) -> bool:
    """Made from the source by ``quantize --to`` and nothing else: a trial would make the same file again."""
    made_here = model.parent is not None and model.parent.name == str(source.model_name)
    used = FILE_TYPES[to].imatrix != "unused" if to in FILE_TYPES else False
    plain = {"to": to, "imatrix": imatrix if used else NONE, "overrides": []}
    return made_here and model.extra.get(RECIPE) == plain


def _unreadable(store: ModelStore, source: Manifest) -> list[Skipped]:
    """Variants without a readable manifest: nobody knows what they are, but they are there."""
    directories = [path for path in store.damaged() if path.parent.name == source.name]
    return [Skipped(f"{path.parent.name}:{path.name}", "Its manifest cannot be read.") for path in directories]


def _usual_types(source: Manifest) -> list[str]:
    bits = 8 * source.size / source.parameters if source.parameters else 32.0
    mlx = _USUAL_MLX_TYPES if read_machine().apple_silicon else ()
    names = [name for name in USUAL_TYPES if FILE_TYPES[name].bits < bits]
    return names + [name for name in mlx if MLX_TYPES[name].bits < bits]


def _asked_types(source: Manifest, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        wanted = mlx_type_name(name) or find_file_type(name).name
        if source.format == "gguf" and wanted == source.quantization.lower():
            raise UsageError(f"{source.model_name} is {source.quantization} already.", "Leave that type out.")
        found.append(wanted)
    return list(dict.fromkeys(found))
