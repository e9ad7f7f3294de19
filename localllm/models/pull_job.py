"""``localllm pull`` as a job: it outlives the window that it was started in."""

from dataclasses import asdict
from typing import Any

from localllm.jobs.context import JobContext
from localllm.jobs.events import Progress
from localllm.jobs.record import JobSpec
from localllm.models.aliases import ALIASES
from localllm.models.pull import Convert, PullProgress, pull
from localllm.models.sources.parse import parse_source
from localllm.models.store import ModelStore


def pull_spec(source: str, as_name: str | None = None) -> JobSpec:
    """The job that pulls ``source``; a relative path is made absolute, for the job stands in another directory.

    Raises:
        UsageError: ``source`` is malformed.
    """
    alias = ALIASES.get(source.strip().lower())
    text = source.strip().lower() if alias else parse_source(source).text
    arguments = {"source": text, "as_name": as_name}
    # What is converted on the way needs a package that this one may not import: the worker finds it by its name.
    entry = "quant.pull_job:run" if alias and alias.convert else "localllm.models.pull_job:run"
    return JobSpec("pull", text, entry, arguments, heavy=False, resumable=True, interrupt="cancel")


def run(context: JobContext, convert: Convert | None = None) -> dict[str, Any]:
    """Pull, with ``convert`` where the model needs it.

    Returns:
        The model's ``name``, its ``manifest``, and whether anything was ``fetched``.
    """
    fetched = False

    def progress(now: PullProgress) -> None:
        nonlocal fetched
        fetched = fetched or now.stage == "install"
        context.emit(Progress(now.stage, now.done, now.total, now.file, "B"))

    # It waits for networks, locks and pip: a cancel ends that as Ctrl-C does, and what has come is kept.
    with context.interruptible():
        manifest = pull(
            context.arguments["source"],
            ModelStore(context.home),
            as_name=context.arguments["as_name"],
            progress=progress,
            convert=convert,
        )
    return {"name": str(manifest.model_name), "manifest": asdict(manifest), "fetched": fetched}
