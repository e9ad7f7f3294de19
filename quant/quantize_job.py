"""What ``localllm quantize MODEL --to TYPE`` does, as a job: any model in, a smaller one out, with its lineage."""

import shlex
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from localllm.errors import QuantizeError, UsageError
from localllm.gguf_header import read_gguf_parts
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.jobs.record import JobSpec
from localllm.mlx_setup import prepare_process
from localllm.models.manifest import Manifest
from localllm.models.names import parse_model_name
from localllm.models.register import Making, named, register, require_free
from localllm.models.store import ModelStore
from quant.child import CheckCancelled
from quant.child import Progress as OnProgress
from quant.convert import to_gguf
from quant.imatrix.file import ImportanceMatrix
from quant.importance import ImportanceChoice, obtain_imatrix
from quant.like import choices_of, require_covered
from quant.llama_choices import QuantizeChoices, source_parts
from quant.llama_plan import QuantizePlan, plan_types
from quant.llama_quantize import quantize_gguf
from quant.mlx_types import MLX_TYPES, mlx_type_name

_NOTHING_MEASURED = ImportanceMatrix({}, (), 0, 0)


@dataclass(frozen=True)
class QuantizeWish:
    """What a person asks.

    Attributes:
        model: Its name in the store.
        to: The type: ``q4_k_m`` (GGUF), ``mlx-4bit`` (a directory for MLX).
        imatrix: See :class:`quant.importance.ImportanceChoice`.
        overrides: ``REGEX=TYPE`` rules for single tensors.
        as_name: What to call the result; empty for MODEL:TYPE.
        like: In place of ``to``: a GGUF model of the same family, whose types are taken tensor by tensor.
    """

    model: str
    to: str
    imatrix: str = "default"
    overrides: tuple[str, ...] = ()
    as_name: str = ""
    like: str = ""


def quantize_spec(store: ModelStore, wish: QuantizeWish) -> tuple[JobSpec, Manifest | None]:
    """The job that quantizes; and the result, where it is here already.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: A type, rule, name or file is none.
        StoreError: The name is taken by another model.
    """
    parent = store.resolve(wish.model)
    if wish.like:
        return _like_spec(store, parent, wish)
    if mlx := mlx_type_name(wish.to):
        return _mlx_spec(store, parent, replace(wish, to=mlx))
    choices = QuantizeChoices.parse(wish.to, wish.overrides)
    to = choices.file_type.name
    if parent.format == "gguf" and parent.quantization.lower() == to and not wish.overrides:
        raise UsageError(f"{parent.model_name} is {parent.quantization} already.", "Choose another type.")
    imatrix = "none" if choices.file_type.imatrix == "unused" and not wish.overrides else wish.imatrix
    name = named(parent, to, parse_model_name(wish.as_name) if wish.as_name else None)
    arguments = {
        "model": str(parent.model_name),
        "to": to,
        **ImportanceChoice.parse(imatrix).record,
        "overrides": _rules(choices),
        "name": str(name),
    }
    spec = JobSpec("quantize", f"{parent.model_name} to {to}", "quant.quantize_job:quantize", arguments)
    return spec, require_free(store, _making(store, arguments))


def _like_spec(store: ModelStore, parent: Manifest, wish: QuantizeWish) -> tuple[JobSpec, Manifest | None]:
    like = store.resolve(wish.like)
    if like.format != "gguf":
        raise UsageError(f"{like.model_name} is no GGUF model.", "--like takes the types of a GGUF model.")
    to, rules = choices_of(read_gguf_parts(source_parts(store.file(like))), str(like.model_name))
    name = named(parent, like.variant, parse_model_name(wish.as_name) if wish.as_name else None)
    arguments = {
        "model": str(parent.model_name),
        "to": to,
        **ImportanceChoice.parse(wish.imatrix).record,
        "overrides": _rules(QuantizeChoices.parse(to, wish.overrides)),
        "like": {"model": str(like.model_name), "rules": list(rules)},
        "name": str(name),
    }
    title = f"{parent.model_name} like {like.model_name}"
    spec = JobSpec("quantize", title, "quant.quantize_job:quantize", arguments)
    return spec, require_free(store, _making(store, arguments))


def _rules(choices: QuantizeChoices) -> list[str]:
    return [f"{pattern}={kind.lower()}" for pattern, kind in choices.overrides]


def _mlx_spec(store: ModelStore, parent: Manifest, wish: QuantizeWish) -> tuple[JobSpec, Manifest | None]:
    if wish.overrides or wish.imatrix not in ("default", "none"):
        raise UsageError(f"{wish.to} takes no importance matrix and no rules for single tensors.", "Leave them out.")
    name = named(parent, wish.to, parse_model_name(wish.as_name) if wish.as_name else None)
    model = str(parent.model_name)
    arguments = {"model": model, "to": wish.to, "imatrix": "none", "overrides": [], "name": str(name)}
    spec = JobSpec("quantize", f"{model} to {wish.to}", "quant.quantize_job:quantize", arguments)
    return spec, require_free(store, _making(store, arguments))


def quantize(context: JobContext) -> dict[str, Any]:
    """Quantize a model; the result holds its ``name``, ``manifest``, ``bits``, ``warnings`` and a ``summary``."""
    store = ModelStore(context.home)
    making = _making(store, context.arguments)
    found = require_free(store, making)
    bits: float | None = None
    warnings: tuple[str, ...] = ()
    if found is None:
        workspace = store.workspace
        waits = partial(context.emit, Message("info", f"Another process makes {making.name}: waiting for it."))
        with context.interruptible(), workspace.exclusive(workspace.key(f"make {making.name}"), waits) as work:
            try:
                if context.arguments["to"] in MLX_TYPES:
                    made = _quantize_mlx(store, making.parent, work, context)
                else:
                    made, plan = _quantize(store, making.parent, work, context)
                    bits, warnings = plan.bits, plan.warnings
                checking = partial(_check_progress, context)
                found = require_free(store, making) or register(store, made, making, checking)
            finally:
                workspace.discard(work)
    return {
        "name": str(found.model_name),
        "manifest": asdict(found),
        "bits": bits,
        "warnings": list(warnings),
        "summary": f"{found.model_name}  {found.size:,} bytes",
    }


def plan_quantize(
    store: ModelStore, spec: JobSpec, work: Path, *, progress: OnProgress, check_cancelled: CheckCancelled
) -> QuantizePlan:
    """What the job of ``spec`` would make, without making it. A model that is not GGUF becomes so first, in ``work``.

    Raises:
        InvalidModelError: The model is damaged.
        QuantizeError: llama.cpp refuses.
    """
    arguments = spec.arguments
    parent = store.resolve(arguments["model"])
    if arguments["to"] in MLX_TYPES:
        raise UsageError(f"There is no plan of {arguments['to']}: its tensors are chosen as they are read.")
    source = source_gguf(store, parent, work, progress=progress, check_cancelled=check_cancelled)
    choices = QuantizeChoices.parse(arguments["to"], _all_rules(source, arguments))
    imatrix = _NOTHING_MEASURED if ImportanceChoice(arguments["imatrix"]).is_used else None
    return plan_types(source, choices, imatrix, check_cancelled=check_cancelled)


def source_gguf(
    store: ModelStore, parent: Manifest, work: Path, *, progress: OnProgress, check_cancelled: CheckCancelled
) -> Path:
    """The GGUF file of ``parent``; of a directory, one with its own weights, made in ``work``."""
    file = store.file(parent)
    if parent.format == "gguf":
        return file
    target = work / "source.gguf"
    to_gguf(file.parent, target, name=parent.name, progress=progress, check_cancelled=check_cancelled)
    return target


def telling(context: JobContext, stage: str, unit: str = "") -> OnProgress:
    """A ``progress`` that writes the job's events."""

    def tell(item: str, done: int, total: int | None) -> None:
        context.emit(Progress(stage, done, total, item=item if unit == "" else "", unit=unit))

    return tell


def _making(store: ModelStore, arguments: dict[str, Any]) -> Making:
    parent = store.resolve(arguments["model"])
    name = parse_model_name(arguments["name"])
    types = f"--like {arguments['like']['model']}" if "like" in arguments else f"--to {arguments['to']}"
    words = [f"{types} --imatrix {shlex.quote(arguments['imatrix'])}"]
    words += ["--override '{}'".format(rule.replace("'", "'\\''")) for rule in arguments["overrides"]]
    how = f"quantize {parent.model_name} {' '.join(words)} --as {name}"
    return Making(name, parent, how, recipe_of(arguments, "to", "imatrix", "imatrix_sha256", "overrides", "like"))


def recipe_of(arguments: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Those of a job's arguments that its result depends on."""
    return {key: arguments[key] for key in keys if key in arguments}


def _quantize(store: ModelStore, parent: Manifest, work: Path, context: JobContext) -> tuple[Path, QuantizePlan]:
    """Quantize into a directory of its own under ``work``."""
    arguments, check = context.arguments, context.check_cancelled
    source = source_gguf(store, parent, work, progress=telling(context, "convert", "B"), check_cancelled=check)
    rules = _all_rules(source, arguments)
    imatrix = obtain_imatrix(
        context.home,
        ImportanceChoice(arguments["imatrix"]),
        parent,
        source,
        work,
        progress=telling(context, "measure importance"),
        check_cancelled=check,
    )
    target = work / "model"
    target.mkdir()
    made = quantize_gguf(
        source,
        target / f"{parent.name}-{arguments['to']}.gguf",
        arguments["to"],
        imatrix=imatrix,
        overrides=rules,
        progress=telling(context, "quantize"),
        check_cancelled=check,
    )
    for warning in made.plan.warnings:
        context.emit(Message("warning", warning))
    if len(made.files) != 1:
        raise QuantizeError(f"llama.cpp wrote {len(made.files)} files where one was expected.")
    return target, made.plan


def _all_rules(source: Path, arguments: dict[str, Any]) -> list[str]:
    """The person's own, which count first, and those of the model that is to be followed."""
    if "like" not in arguments:
        return list(arguments["overrides"])
    like = arguments["like"]
    require_covered(read_gguf_parts(source_parts(source)), like["rules"], like["model"])
    return [*arguments["overrides"], *like["rules"]]


def _quantize_mlx(store: ModelStore, parent: Manifest, work: Path, context: JobContext) -> Path:
    """Quantize to one of MLX's types, into a directory of its own under ``work``."""
    prepare_process(0, cpu=False)
    from quant.mlx_quantize import quantize_mlx  # deferred: mlx binds its BLAS as it is imported, and mlx-lm takes 2 s

    file = store.file(parent)
    quantize_mlx(
        file if parent.format == "gguf" else file.parent,
        work / "model",
        context.arguments["to"],
        progress=telling(context, "quantize"),
        check_cancelled=context.check_cancelled,
        notice=lambda text: context.emit(Message("warning", text)),
    )
    return work / "model"


def _check_progress(context: JobContext, done: int, total: int) -> None:
    context.emit(Progress("check", done, total, unit="B"))
