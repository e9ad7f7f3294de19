"""What a training gives back: when it ends, or later, when it was killed between the last step and the end."""

import json
from typing import Any

from finetune.recipe import Recipe, whole_name
from localllm.adapters import AdapterStore
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message
from localllm.models.register import RECIPE
from localllm.models.store import ModelStore

REPORT = "report.json"
ADAPTER = "adapter"  # where the job puts what is installed


def result_of(context: JobContext, recipe: Recipe, base: str, report: dict[str, Any]) -> dict[str, Any]:
    """What a job that is done says.

    Args:
        context: The job.
        recipe: What was followed.
        base: First part of the name of the model that was trained.
        report: Of the run.

    Returns:
        The ``name`` of the adapter, or of the model after full training; the ``report`` and a ``summary``.
    """
    whole = str(whole_name(base, recipe)) if recipe.method == "full" else ""
    called = whole or f"{base}+{recipe.name}"
    change, found = "no held-out rows", report["held_out"]
    if found is not None:
        change = f"held-out loss {found['before']:.3f} to {found['after']:.3f}"
        if found["after"] >= found["before"]:
            context.emit(Message("warning", "The held-out rows are predicted no better than before."))
    summary = f"{called}  {change}. Try it: localllm chat {called}"
    return {"name": whole or recipe.name, "report": report, "summary": summary}


def found_result(context: JobContext, store: ModelStore, recipe: Recipe) -> dict[str, Any] | None:
    """What this very job had put into the store before it was killed; None where it had not."""
    report, base = context.out / REPORT, store.resolve(recipe.model).name
    if recipe.method == "full":
        model = store.get(whole_name(base, recipe))
        is_here = model is not None and model.extra.get(RECIPE) == recipe.model_dump(mode="json")
    else:
        made = str(context.out / ADAPTER)
        is_here = any(one.name == recipe.name and one.source == made for one in AdapterStore(store.home).list())
    if not (is_here and report.is_file()):
        return None
    return result_of(context, recipe, base, json.loads(report.read_text(encoding="utf-8")))
