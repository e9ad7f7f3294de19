"""What ``localllm finetune`` does, as a job."""

import json
from typing import Any

from finetune.recipe import Recipe, write_recipe
from localllm.adapters import AdapterStore
from localllm.errors import UsageError
from localllm.files import write_atomic
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.jobs.record import JobSpec
from localllm.memory import machine_memory
from localllm.mlx_setup import prepare_process
from localllm.models.derive import plain_stem, store_name
from localllm.models.store import ModelStore
from localllm.settings import load_settings


def train_spec(store: ModelStore, recipe: Recipe) -> JobSpec:
    """The job that follows ``recipe``.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: The adapter's name is taken.
    """
    manifest = store.resolve(recipe.model)
    name = recipe.name or store_name(plain_stem(recipe.data[0].rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0])).name
    if any(adapter.name == name for adapter in AdapterStore(store.home).list()):
        raise UsageError(
            f"There is an adapter {name} already.",
            f"Choose another name with --as, or remove it: localllm models rm +{name}",
        )
    settled = recipe.model_copy(update={"model": str(manifest.model_name), "name": name})
    arguments = {"recipe": settled.model_dump(mode="json")}
    title = f"{manifest.model_name} on {', '.join(recipe.data)}"
    return JobSpec("finetune", title, "finetune.jobs:train", arguments, resumable=True)


def train(context: JobContext) -> dict[str, Any]:
    """Follow a recipe; the result holds the adapter's ``name``, the ``report`` and a ``summary``."""
    recipe = Recipe.model_validate(context.arguments["recipe"])
    settings = load_settings(context.home.settings_file)
    prepare_process(settings.threads, cpu=settings.gpu_layers == 0)
    # Deferred: mlx binds its BLAS as it is imported, so what imports it comes after prepare_process.
    from finetune.base import load_base
    from finetune.base_model import in_mlx_form
    from finetune.curve import loss_curve
    from finetune.data.dataset import load_dataset
    from finetune.data.formatter import ChatFormatter
    from finetune.observer import read_history
    from finetune.publish import publish
    from finetune.ranks import Ranks
    from finetune.session import Session, describe
    from finetune.speak import end_tokens, speaker
    from finetune.tokenizer import load_tokenizer

    def say(text: str) -> None:
        context.emit(Message("info", text))

    store = ModelStore(context.home)
    manifest = in_mlx_form(store, store.resolve(recipe.model), context)
    formatter = ChatFormatter(load_tokenizer(store, manifest), recipe.train_on)
    data = load_dataset(
        recipe,
        formatter,
        progress=lambda item, done, total: context.emit(Progress("read", done, total, item)),
        check_cancelled=context.check_cancelled,
    )
    for line in data.report.lines():
        say(line)
    base = load_base(store.file(manifest).parent)
    speak = speaker(base.model, formatter, end_tokens(base.config, formatter.tokenizer))
    budget = machine_memory(settings.memory_gb).budget
    outcome = Session(recipe, base, data, context, budget, speak, Ranks.join()).run()
    report = describe(recipe, data, outcome, say)
    history = read_history(context.out)
    write_recipe(context.out / "recipe.yaml", recipe)
    write_atomic(context.out / "report.json", json.dumps(report, indent=2) + "\n")
    write_atomic(context.out / "loss.svg", loss_curve(history, f"{recipe.model}+{recipe.name}"))
    adapter = publish(store, manifest, recipe, outcome.adapter, context.out, say)
    losses = [record["valid_loss"] for record in history if "valid_loss" in record]
    change = "no held-out rows"
    if losses:
        change = f"held-out loss {losses[0]:.3f} to {min(losses[1:], default=losses[0]):.3f}"
    return {
        "name": adapter.name,
        "report": report,
        "summary": f"{manifest.name}+{adapter.name}  {change}. Try it: localllm chat {manifest.name}+{adapter.name}",
    }
