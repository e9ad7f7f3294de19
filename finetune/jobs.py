"""What ``localllm finetune`` does, as a job."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from finetune.data.files import find_files
from finetune.data.hub import fetch_named
from finetune.rank_launch import find_hosts, train_together
from finetune.recipe import Recipe, whole_name
from finetune.result import found_result
from localllm.adapters import AdapterStore
from localllm.errors import JobError, UsageError
from localllm.files import write_atomic
from localllm.jobs.context import JobContext
from localllm.jobs.events import Message, Progress
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec
from localllm.jobs.store import JobStore
from localllm.machine import read_machine
from localllm.memory import machine_memory
from localllm.mlx_setup import prepare_process
from localllm.models.derive import plain_stem, store_name
from localllm.models.names import parse_model_name
from localllm.models.sources.hub_rows import HubRows
from localllm.models.store import ModelStore
from localllm.settings import load_settings
from localllm.typed_paths import is_there

_COMMITS = "commits.json"
_BAD_NAMED = 20


def train_spec(store: ModelStore, recipe: Recipe, *, ranks: int = 1, hosts: str = "") -> JobSpec:
    """The job that follows ``recipe``.

    Args:
        store: Has the model.
        recipe: What to train.
        ranks: Processes on this machine that train together.
        hosts: A host file of ``mlx.launch`` instead; empty for none.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: The adapter's name is none or taken, the model cannot be trained so, or there cannot be such ranks.
    """
    if "+" in recipe.model:
        raise UsageError(
            "A model with an adapter cannot be trained.",
            f"Make one model of both: localllm models export {recipe.model} --to mlx",
        )
    manifest = store.resolve(recipe.model)
    if recipe.method == "full" and manifest.format == "mlx":
        raise UsageError(
            f"The weights of {manifest.model_name} are packed, and full training changes all of them.",
            f"Unpack it first: localllm models export {manifest.model_name} --to mlx",
        )
    name = _parse_name(recipe.name) if recipe.name else _name_after(recipe.data[0])
    settled = recipe.model_copy(update={"model": str(manifest.model_name), "name": name})
    if taken := _taken(store, settled):
        raise UsageError(
            f"There is {taken.what} already.",
            f"Choose another name with --as, or remove it: localllm models rm {taken.name}",
        )
    find_hosts(ranks, hosts)
    arguments = {"recipe": settled.model_dump(mode="json"), "ranks": ranks, "hosts": hosts}
    title = f"{manifest.model_name} on {', '.join(recipe.data)}"
    return JobSpec("finetune", title, "finetune.jobs:train", arguments, resumable=True)


def unfinished(jobs: JobStore, spec: JobSpec) -> Job | None:
    """A training that has not ended and will take the name that ``spec`` wants; reads the disk."""
    wanted = spec.arguments["recipe"]["name"]
    for job in jobs.list():
        recipe = job.spec.arguments.get("recipe")
        if job.spec.kind != spec.kind or not isinstance(recipe, dict) or recipe.get("name") != wanted:
            continue
        with suppress(JobError):  # a damaged one takes nothing, nor does one that was never started
            if (status := job.status()).state != "new" and not status.has_ended:
                return job
    return None


@dataclass(frozen=True)
class _Taken:
    """What has a name already: in words, and as `models rm` knows it."""

    what: str
    name: str


def _taken(store: ModelStore, recipe: Recipe) -> _Taken | None:
    if recipe.method == "full":
        whole = whole_name(store.resolve(recipe.model).name, recipe)
        return _Taken(f"a model {whole}", str(whole)) if store.get(whole) else None
    here = any(adapter.name == recipe.name for adapter in AdapterStore(store.home).list())
    return _Taken(f"an adapter {recipe.name}", f"+{recipe.name}") if here else None


def _parse_name(text: str) -> str:
    """An adapter's name, with its capitals folded."""
    name = parse_model_name(text.removeprefix("+"))
    if name.variant:
        raise UsageError(f"{text!r} is not an adapter's name.", "Leave out the colon and what stands behind it.")
    return name.name


def _name_after(data: str) -> str:
    wanted = None if is_there(data) else HubRows.parse(data)
    last = (wanted.repository if wanted else data.rstrip("/")).rsplit("/", 1)[-1]
    return store_name(plain_stem(last if wanted else last.rsplit(".", 1)[0])).name


def train(context: JobContext) -> dict[str, Any]:
    """Follow a recipe; the result holds the adapter's ``name``, the ``report`` and a ``summary``."""
    recipe = Recipe.model_validate(context.arguments["recipe"])
    hosts = find_hosts(context.arguments.get("ranks", 1), context.arguments.get("hosts", ""))
    store = ModelStore(context.home)
    if found := found_result(context, store, recipe):
        return found
    if taken := _taken(store, recipe):  # while it waited, or had ended: not said after all the work
        raise UsageError(
            f"There is {taken.what} by now.",
            f"Remove it (localllm models rm {taken.name}), and `localllm jobs resume {context.id}` goes on.",
        )
    commits = _fetch_data(context, recipe)
    if len(hosts.names) == 1:
        return follow_recipe(context, recipe, commits)
    from finetune.base_model import in_mlx_form  # deferred: the formats, 0.2 s

    in_mlx_form(store, store.resolve(recipe.model), context)  # once, before several want it
    return train_together(context, hosts, commits)


def _fetch_data(context: JobContext, recipe: Recipe) -> dict[str, str]:
    """Fetch the data sets of the hub that the recipe names; the commit of each, which a run that goes on keeps to."""
    path = context.out / _COMMITS
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    fetched = fetch_named(
        recipe.data,
        context.home,
        commits=known,
        say=lambda text: context.emit(Message("info", text)),
        progress=lambda item, done, total: context.emit(Progress("fetch", done, total, item, "B")),
        check_cancelled=context.check_cancelled,
    )
    find_files(recipe.data, fetched)  # what is not there is said before a model is unpacked
    commits = {text: rows.commit for text, rows in fetched.items()}
    if commits != known:
        write_atomic(path, json.dumps(commits, indent=2) + "\n")
    return commits


def follow_recipe(
    context: JobContext, recipe: Recipe, commits: Mapping[str, str], *, sharing: int = 0
) -> dict[str, Any]:
    """Train in this process.

    Args:
        context: The job.
        recipe: What to train.
        commits: Of the data sets of the hub that it names.
        sharing: Ranks on this machine, this one among them; 0 where it trains alone.

    Returns:
        As for :func:`train`; nothing where another rank leads.
    """
    fetched = fetch_named(recipe.data, context.home, commits=commits)
    settings = load_settings(context.home.settings_file)
    n_threads = settings.threads or (max(1, read_machine().performance_cores // sharing) if sharing else 0)
    budget = machine_memory(settings.memory_gb).budget // max(1, sharing)
    prepare_process(n_threads, cpu=settings.gpu_layers == 0, budget=budget)
    # Deferred: mlx binds its BLAS as it is imported, so what imports it comes after prepare_process.
    from finetune.base import load_base
    from finetune.base_model import in_mlx_form
    from finetune.data.dataset import load_dataset
    from finetune.data.formatter import ChatFormatter
    from finetune.lanes import open_lanes
    from finetune.publish import finish
    from finetune.ranks import Ranks
    from finetune.session import Session, describe
    from finetune.speak import end_tokens, speaker
    from finetune.tokenizer import load_tokenizer

    def say(text: str) -> None:
        context.emit(Message("info", text))

    lanes = open_lanes(n_threads)
    ranks = Ranks.join() if sharing else Ranks()
    store = ModelStore(context.home)
    manifest = in_mlx_form(store, store.resolve(recipe.model), context)
    formatter = ChatFormatter(load_tokenizer(store, manifest), recipe.train_on)
    data = load_dataset(
        recipe,
        formatter,
        found=find_files(recipe.data, fetched),
        progress=lambda item, done, total: context.emit(Progress("read", done, total, item)),
        check_cancelled=context.check_cancelled,
    )
    for line in [*data.report.lines(), *(f"Left out: {row}" for row in data.report.named_bad(_BAD_NAMED))]:
        say(line)
    base = load_base(store.file(manifest).parent)
    speak = speaker(base.model, formatter, end_tokens(base.config, formatter.tokenizer))
    outcome = Session(recipe, base, data, context, budget, speak, ranks, lanes).run()
    if outcome is None:
        return {}
    report = describe(recipe, data, outcome, say)
    report["data"]["commits"] = dict(commits)
    return finish(context, store, manifest, recipe, outcome.adapter, report)
