"""What training will need, measured in a process of its own: the job behind ``localllm finetune --check``."""

from collections.abc import Mapping
from typing import Any

from finetune.data.files import find_files
from finetune.data.hub import fetch_named
from finetune.recipe import Recipe
from localllm.jobs.context import JobContext
from localllm.jobs.record import JobSpec
from localllm.memory import machine_memory
from localllm.mlx_setup import prepare_process
from localllm.models.store import ModelStore
from localllm.settings import load_settings


def plan_spec(recipe: Recipe, commits: Mapping[str, str] | None = None) -> JobSpec:
    """The job that measures ``recipe``.

    Args:
        recipe: What would be trained.
        commits: Of the data sets of the hub that it names and that were fetched before.
    """
    arguments = {"recipe": recipe.model_dump(mode="json"), "commits": dict(commits or {})}
    return JobSpec("check", f"what {recipe.model} needs", "finetune.plan_job:plan", arguments, interrupt="cancel")


def plan(context: JobContext) -> dict[str, Any]:
    """Load the model, measure a few steps; the result holds ``peak`` and ``budget`` in bytes, ``seconds``, ``updates``.

    A GGUF model is unpacked first, as training would.

    Raises:
        MemoryFitError: It does not fit.
    """
    recipe = Recipe.model_validate(context.arguments["recipe"])
    commits = context.arguments.get("commits", {})
    fetched = fetch_named(recipe.data, context.home, commits=commits, check_cancelled=context.check_cancelled)
    settings = load_settings(context.home.settings_file)
    budget = machine_memory(settings.memory_gb).budget
    prepare_process(settings.threads, cpu=settings.gpu_layers == 0, budget=budget)
    # Deferred: mlx binds its BLAS as it is imported, so what imports it comes after prepare_process.
    from finetune.base import load_base
    from finetune.base_model import in_mlx_form
    from finetune.data.dataset import load_dataset
    from finetune.data.formatter import ChatFormatter
    from finetune.lanes import open_lanes
    from finetune.ranks import Ranks
    from finetune.session import Session
    from finetune.tokenizer import load_tokenizer

    lanes = open_lanes(settings.threads)
    store = ModelStore(context.home)
    manifest = in_mlx_form(store, store.resolve(recipe.model), context)
    formatter = ChatFormatter(load_tokenizer(store, manifest), recipe.train_on)
    found = find_files(recipe.data, fetched)
    data = load_dataset(recipe, formatter, found=found, check_cancelled=context.check_cancelled)
    base = load_base(store.file(manifest).parent)
    session = Session(recipe, base, data, context, budget, lambda _chat, _longest: "", Ranks(), lanes)
    made = session.make_plan()
    n_tokens = made.schedule.n_steps * made.schedule.accumulate * made.rows * made.capacity
    return {
        "peak": made.fitted.predicted,
        "budget": budget,
        "seconds": n_tokens * made.fitted.seconds_per_token,
        "updates": made.schedule.n_steps,
        "note": made.fitted.note,
    }
