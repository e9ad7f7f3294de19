"""What ``localllm models export`` does, as a job."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.jobs.record import JobSpec
from localllm.models.manifest import Manifest
from localllm.models.names import parse_model_name
from localllm.models.register import Making, named, register, require_free
from localllm.models.store import ModelStore
from quant.convert import OnProgress, from_gguf, to_gguf
from quant.forms import Form, parse_form


def export_spec(store: ModelStore, model: str, form: str, as_name: str = "") -> tuple[JobSpec, Manifest | None]:
    """The job that brings ``model`` into another form; and the result, where it is here already.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: The form or the name is none.
        StoreError: The name is taken by another model.
    """
    parent = store.resolve(model)
    wanted = parse_form(form, parent)
    # A directory in F16 is called f16, as a GGUF file is.
    variant = wanted.variant if wanted.variant != parent.variant else f"{wanted.kind}-{wanted.type}"
    name = named(parent, variant, parse_model_name(as_name) if as_name else None)
    arguments = {"model": str(parent.model_name), "form": str(wanted), "name": str(name)}
    title = f"{parent.model_name} to {wanted}"
    spec = JobSpec("export", title, "quant.jobs:export", arguments, heavy=False)
    return spec, require_free(store, _making(store, arguments))


def export(context: JobContext) -> dict[str, Any]:
    """Bring a model into another form; the result holds its ``name``, ``manifest`` and a ``summary``."""
    found = export_into(ModelStore(context.home), context.arguments, context)
    return {
        "name": str(found.model_name),
        "manifest": asdict(found),
        "summary": f"{found.model_name}  {found.size:,} bytes",
    }


def export_into(store: ModelStore, arguments: dict[str, Any], context: JobContext) -> Manifest:
    """Do what :func:`export_spec` has made the ``arguments`` for, as a part of any job; the result, old or new."""
    making = _making(store, arguments)
    found = require_free(store, making)
    if found is not None:
        return found
    parent = making.parent
    form = parse_form(arguments["form"], parent)
    workspace = store.workspace
    key = workspace.key(f"make {making.name}")
    waits = partial(context.emit, Message("info", f"Another process makes {making.name}: waiting for it."))
    with context.interruptible(), workspace.exclusive(key, waits) as work:
        try:
            result = _convert(store, parent, form, work, context)
            return require_free(store, making) or register(store, result, making, _checking(context))
        finally:
            workspace.discard(work)


def _making(store: ModelStore, arguments: dict[str, Any]) -> Making:
    parent = store.resolve(arguments["model"])
    name = parse_model_name(arguments["name"])
    how = f"models export {parent.model_name} --to {arguments['form']} --as {name}"
    return Making(name, parent, how, {"form": arguments["form"]})


def _convert(store: ModelStore, parent: Manifest, form: Form, work: Path, context: JobContext) -> Path:
    """Convert into a directory of its own under ``work``; return that."""
    source, target, check = store.file(parent), work / "model", context.check_cancelled
    unpacking, converting = _telling(context, "unpack"), _telling(context, "convert")
    if form.kind == "gguf":
        directory = source.parent
        if parent.format == "gguf":
            # Through plain weights: what was quantized is unpacked, and written in the other type.
            directory, plain = work / "plain", "f32" if form.type == "q8_0" else form.type
            from_gguf(source, directory, dtype=plain, progress=unpacking, check_cancelled=check)
        target.mkdir()
        file = target / f"{parent.name}-{form.type}.gguf"
        to_gguf(directory, file, type=form.type, name=parent.name, progress=converting, check_cancelled=check)
        return target
    if parent.format != "gguf":
        file = work / "plain.gguf"
        to_gguf(source.parent, file, type=form.type, name=parent.name, progress=unpacking, check_cancelled=check)
        source = file
    from_gguf(source, target, dtype=form.type, progress=converting, check_cancelled=check)
    return target


def _telling(context: JobContext, stage: str) -> OnProgress:
    return lambda _item, done, total: context.emit(Progress(stage, done, total, unit="B"))


def _checking(context: JobContext) -> Callable[[int, int], None]:
    return lambda done, total: context.emit(Progress("check", done, total, unit="B"))
