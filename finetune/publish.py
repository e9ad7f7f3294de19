"""The end of a training: what it came to is written down, and the adapter is put into the store.

There in the form that llama.cpp loads too, where that is possible. After full training it is a model of its own.
"""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune.curve import loss_curve
from finetune.fuse import write_whole
from finetune.observer import read_history
from finetune.recipe import Recipe, whole_name, write_recipe
from finetune.result import ADAPTER, REPORT, result_of
from localllm.adapters import AdapterManifest, AdapterStore
from localllm.errors import LocalLLMError
from localllm.files import write_atomic
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.models.manifest import Manifest
from localllm.models.register import Making, register, require_free
from localllm.models.store import ModelStore
from localllm.paths import DIR_MODE
from quant.lora import convert_adapter

_BESIDE = ("recipe.yaml", REPORT, "loss.svg", "history.jsonl")


def finish(
    context: JobContext, store: ModelStore, base: Manifest, recipe: Recipe, trained: Path, report: dict[str, Any]
) -> dict[str, Any]:
    """Write recipe, report and curve, and install the adapter, or the model.

    Args:
        context: The job.
        store: Of models; the adapters are beside it.
        base: The model that was trained, in MLX's form.
        recipe: What was followed.
        trained: Directory of the best weights.
        report: Of the run; the held-out losses are added.

    Returns:
        As for :func:`finetune.result.result_of`.
    """
    history = read_history(context.out)
    report = {**report, "held_out": held_out(history)}
    write_recipe(context.out / "recipe.yaml", recipe)
    write_atomic(context.out / REPORT, json.dumps(report, indent=2) + "\n")
    write_atomic(context.out / "loss.svg", loss_curve(history, f"{recipe.model}+{recipe.name}"))
    if recipe.method == "full":
        publish_whole(context, store, base, recipe, trained)
    else:
        publish(store, base, recipe, trained, context.out, partial(_say, context))
    return result_of(context, recipe, base.name, report)


def _say(context: JobContext, text: str) -> None:
    context.emit(Message("info", text))


def held_out(history: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The loss of the held-out rows ``before`` (the base model's) and ``after`` (the best adapter's), in nats a token.

    None where nothing was held out.
    """
    losses = [float(record["valid_loss"]) for record in history if "valid_loss" in record]
    return {"before": losses[0], "after": min(losses[1:], default=losses[0])} if losses else None


def publish(
    store: ModelStore, base: Manifest, recipe: Recipe, trained: Path, out: Path, say: Callable[[str], None]
) -> AdapterManifest:
    """Install ``trained`` under the recipe's name.

    Args:
        store: Of models; the adapters are beside it.
        base: The model that was trained, in MLX's form.
        recipe: Names the adapter.
        trained: Directory of the best weights.
        out: Holds the recipe, the report, the curve.
        say: Told what a person should know.
    """
    directory = out / ADAPTER
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=DIR_MODE)
    for name in ("adapter_config.json", "adapters.safetensors"):
        shutil.copy(trained / name, directory / name)
    if recipe.method == "lora":
        try:
            convert_adapter(trained, directory / "adapter.gguf", to="gguf", base=store.file(base).parent)
        except LocalLLMError as error:
            say(f"The adapter has no form for llama.cpp: {error.message} It runs on MLX.")
    extras = tuple(out / name for name in _BESIDE if (out / name).is_file())
    adapter, _ = AdapterStore(store.home).install(directory, name=recipe.name or "", base=base.name, beside=extras)
    return adapter


def publish_whole(context: JobContext, store: ModelStore, base: Manifest, recipe: Recipe, trained: Path) -> Manifest:
    """Put the model that full training has made into the store.

    Args:
        context: The job.
        store: Of models.
        base: The model that was trained, in MLX's form.
        recipe: Names the result.
        trained: Directory of the best weights.

    Raises:
        StoreError: Another model has the name.
        DiskFullError: There is no room.
    """
    name = whole_name(base.name, recipe)
    words = ["finetune", str(base.model_name), "--data", *recipe.data, "--method", "full", "--as", str(recipe.name)]
    making = Making(name, base, shlex.join(words), recipe.model_dump(mode="json"))
    waits = partial(_say, context, f"Another process makes {name}: waiting for it.")
    with store.workspace.exclusive(store.workspace.key(f"make {name}"), waits) as work:
        try:
            write_whole(
                store.file(base).parent,
                trained,
                work / "model",
                progress=lambda _item, done, total: context.emit(Progress("write", done, total, unit="B")),
            )
            return require_free(store, making) or register(store, work / "model", making)
        finally:
            store.workspace.discard(work)
