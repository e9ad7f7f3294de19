"""What ``localllm quantize MODEL --fit SIZE`` does, as a job: measure, plan, and quantize by the plan."""

import glob
import hashlib
import shlex
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError, UsageError
from localllm.gguf_header import read_gguf_parts
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.jobs.record import JobSpec
from localllm.memory import USUAL_CONTEXT
from localllm.models.manifest import Manifest
from localllm.models.measured import measured_stem
from localllm.models.names import parse_model_name
from localllm.models.register import Making, named, register, require_free
from localllm.models.store import ModelStore
from localllm.paths import DIR_MODE, Home
from quant.fit.plan import FitPlan, budget_for_tensors, parse_budget, plan_fit, require_possible
from quant.fit.sensitivity import DEFAULT_OPTIONS, Sensitivity, measure_sensitivity, read_sensitivity
from quant.fit.text import probing_texts
from quant.importance import CHATS, ImportanceChoice, obtain_imatrix
from quant.llama_choices import source_parts
from quant.llama_quantize import quantize_gguf
from quant.measure.run import MeasureOptions
from quant.quantize_job import recipe_of, source_gguf, telling

_KEPT = "-sensitivity.json"


@dataclass(frozen=True)
class FitWish:
    """What a person asks.

    Attributes:
        model: Its name in the store.
        size: Memory for the loaded model: ``3GB``.
        n_ctx: Tokens of context that must fit too; 0 takes 8192, or the model's own where that is less.
        imatrix: See :class:`quant.importance.ImportanceChoice`.
        as_name: What to call the result; empty for MODEL:fit-SIZE.
        dry_run: Measure and plan only.
        like: A model of the same family that was measured: what was found is taken over, and no model runs.
    """

    model: str
    size: str
    n_ctx: int = 0
    imatrix: str = "default"
    as_name: str = ""
    dry_run: bool = False
    like: str = ""


def fit_spec(store: ModelStore, wish: FitWish) -> tuple[JobSpec, Manifest | None]:
    """The job that fits; and the result, where it is here already.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: The size, name or file is none, or nothing was measured of ``like``.
        StoreError: The name is taken by another model.
    """
    parent = store.resolve(wish.model)
    memory = parse_budget(wish.size)
    usual = min(parent.n_ctx_train or USUAL_CONTEXT, USUAL_CONTEXT)
    variant = "fit-" + wish.size.strip().lower().replace(" ", "")
    arguments = {
        "model": str(parent.model_name),
        "fit": memory,
        "ctx": wish.n_ctx or usual,
        **ImportanceChoice.parse(wish.imatrix).record,
        "name": str(named(parent, variant, parse_model_name(wish.as_name) if wish.as_name else None)),
        "dry_run": wish.dry_run,
    }
    if wish.like:
        arguments["like"] = str(_measured(store, wish.like)[0].model_name)
    spec = JobSpec("quantize", f"{parent.model_name} into {wish.size}", "quant.fit.job:fit", arguments)
    return spec, None if wish.dry_run else require_free(store, _making(store, arguments))


def fit(context: JobContext) -> dict[str, Any]:
    """Measure, plan and quantize; the result holds the ``plan``, and unless only that was asked, what was made."""
    store = ModelStore(context.home)
    making = _making(store, context.arguments)
    workspace = store.workspace
    waits = partial(context.emit, Message("info", f"Another process makes {making.name}: waiting for it."))
    with context.interruptible(), workspace.exclusive(workspace.key(f"make {making.name}"), waits) as work:
        try:
            if not context.arguments["dry_run"] and (made := require_free(store, making)):
                return {"name": str(made.model_name), "manifest": asdict(made), "summary": _summary(made)}
            check = context.check_cancelled
            source = source_gguf(
                store, making.parent, work, progress=telling(context, "convert", "B"), check_cancelled=check
            )
            header = read_gguf_parts(source_parts(source))
            budget = budget_for_tensors(header, context.arguments["fit"], context.arguments["ctx"])
            require_possible(header, budget)
            imatrix = obtain_imatrix(
                context.home,
                ImportanceChoice(context.arguments["imatrix"]),
                making.parent,
                source,
                work,
                progress=telling(context, "measure importance"),
                check_cancelled=check,
            )
            plan = plan_fit(header, _sensitivity(context, store, making.parent, source, imatrix, work), budget)
            for line in plan_lines(plan):
                context.emit(Message("info", line))
            record = {**asdict(plan), "ctx": context.arguments["ctx"], "memory": context.arguments["fit"]}
            if context.arguments["dry_run"]:
                return {"plan": record, "summary": "\n".join(plan_lines(plan))}
            target = work / "model"
            target.mkdir()
            quantize_gguf(
                source,
                target / f"{making.parent.name}-{making.name.variant}.gguf",
                plan.base,
                imatrix=imatrix,
                overrides=plan.overrides,
                progress=telling(context, "quantize"),
                check_cancelled=check,
            )
            found = register(store, target, making, partial(_check_progress, context))
        finally:
            workspace.discard(work)
    return {"name": str(found.model_name), "manifest": asdict(found), "plan": record, "summary": _summary(found)}


def _summary(made: Manifest) -> str:
    return f"{made.model_name}  {made.size:,} bytes"


def plan_lines(plan: FitPlan) -> list[str]:
    """The plan as a person reads it: a line for each role and type."""
    lines = [
        f"{share.role:14} {share.kind:8} {share.n_tensors:4}  {share.n_bytes:14,} bytes  KL {share.predicted_kl:.5f}"
        for share in plan.shares
    ]
    total = f"{plan.n_bytes:,} of {plan.budget:,} bytes, predicted KL {plan.predicted_kl:.5f} nats a token"
    return [*lines, total]


def _sensitivity(
    context: JobContext, store: ModelStore, parent: Manifest, source: Path, imatrix: Path | None, work: Path
) -> Sensitivity:
    """What was kept of this model with this importance matrix, else measured now. That of chats is not kept."""
    like = context.arguments.get("like")
    measured = _measured(store, like)[1] if like else None
    kept = _kept(context.home, parent, imatrix, measured)
    if kept.exists():
        try:
            return read_sensitivity(kept)
        except InvalidModelError as error:
            context.emit(Message("warning", error.message))
    if measured is None and (sibling := _sibling(store, parent)):
        text = f"{sibling.model_name} was measured, and is of the same shape: with --like {sibling.model_name} this is"
        context.emit(Message("info", f"{text} a matter of minutes."))
    n_ctx = min(parent.n_ctx_train or DEFAULT_OPTIONS.n_ctx, DEFAULT_OPTIONS.n_ctx)
    found = measure_sensitivity(
        source,
        imatrix,
        probing_texts(),
        work,
        like=read_sensitivity(measured) if measured else None,
        options=MeasureOptions(n_ctx=n_ctx, max_chunks=DEFAULT_OPTIONS.max_chunks),
        progress=lambda item, done, total: context.emit(Progress("measure", done, total, item=item)),
        check_cancelled=context.check_cancelled,
    )
    if context.arguments["imatrix"] != CHATS:
        kept.parent.mkdir(mode=DIR_MODE, exist_ok=True)
        found.save(kept)
    return found


def _kept(home: Home, parent: Manifest, imatrix: Path | None, like: Path | None) -> Path:
    digest = hashlib.sha256(imatrix.read_bytes() if imatrix else b"").hexdigest()[:16]
    ending = f"-like-{hashlib.sha256(like.read_bytes()).hexdigest()[:16]}" if like else ""
    return home.measured / f"{measured_stem(parent)}-{digest}{ending}{_KEPT}"


def _measured(store: ModelStore, name: str) -> tuple[Manifest, Path]:
    """A model that was measured, and the newest of what was kept of it.

    Of a model that was made here it may be what it was made from: what a budget was planned for is measured, not its
    result.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: Nothing was kept.
    """
    asked = store.resolve(name)
    for model in store.lineage(asked):
        if newest := _newest(store.home, model):
            return model, newest
    raise UsageError(
        f"Nothing was measured of {asked.model_name} that --fit could use.",
        f"`localllm quantize {asked.model_name} --fit SIZE --dry-run` measures it.",
    )


def _newest(home: Home, model: Manifest) -> Path | None:
    found = home.measured.glob(f"{glob.escape(measured_stem(model))}-{'?' * 16}{_KEPT}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _sibling(store: ModelStore, model: Manifest) -> Manifest | None:
    """Another model of the same shape that was measured."""
    shape = (model.architecture, model.parameters)
    others = (other for other in store.list() if (other.architecture, other.parameters) == shape)
    return next((other for other in others if _newest(store.home, other)), None)


def _making(store: ModelStore, arguments: dict[str, Any]) -> Making:
    parent = store.resolve(arguments["model"])
    name = parse_model_name(arguments["name"])
    words = " ".join(
        f"--{key} {shlex.quote(str(arguments[key]))}" for key in ("fit", "ctx", "imatrix", "like") if key in arguments
    )
    recipe = recipe_of(arguments, "fit", "ctx", "imatrix", "imatrix_sha256", "like")
    return Making(name, parent, f"quantize {parent.model_name} {words} --as {name}", recipe)


def _check_progress(context: JobContext, done: int, total: int) -> None:
    context.emit(Progress("check", done, total, unit="B"))
