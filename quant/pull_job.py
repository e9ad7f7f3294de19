"""``localllm pull`` of a model that becomes GGUF as it is installed, as a job."""

from pathlib import Path
from typing import Any

from localllm.jobs.context import JobContext
from localllm.models import pull_job
from localllm.models.aliases import Alias
from localllm.models.transfer import PullProgress, Report
from quant.convert import to_gguf


def run(context: JobContext) -> dict[str, Any]:
    """See :func:`localllm.models.pull_job.run`."""
    return pull_job.run(context, convert)


def convert(work: Path, alias: Alias, report: Report) -> Path:
    """Make one GGUF file of the files in ``work``; see :data:`localllm.models.pull.Convert`."""
    target = work / f"{alias.name.name}-{alias.name.variant}.gguf"

    def progress(_: str, done: int, total: int | None) -> None:
        report(PullProgress("install", done, total, target.name))

    to_gguf(work, target, type=alias.convert, name=alias.name.name, pooling=alias.pooling, progress=progress)
    return target
