"""What ``localllm finetune --check`` finds in the rows, found by a process of its own: for those who must not wait.

The app's Train screen starts it. Nothing here imports transformers or numpy before the job runs.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finetune.data.hub import fetch_named
from finetune.recipe import Recipe
from localllm.errors import JobError
from localllm.files import write_atomic
from localllm.jobs.context import JobContext
from localllm.jobs.events import Progress
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec
from localllm.mlx_setup import prepare_process
from localllm.models.store import ModelStore
from localllm.settings import load_settings

if TYPE_CHECKING:
    from finetune.check import Piece
    from finetune.data.dataset import Dataset

_FILE = "findings.json"
_BAD_KEPT = 1000
_PREVIEW_CHARS = 4000
_FORWARD_TOKENS = 1024  # of one forward pass, about as Session chooses them


@dataclass(frozen=True)
class Findings:
    """What was found in the rows.

    Attributes:
        lines: In words: rows by shape, duplicates, rows cut, bad rows.
        n_train: Examples to learn from.
        n_valid: Examples held out.
        n_tokens: Of both.
        n_learnt: Tokens among those that are learnt.
        n_bad: Rows that cannot be learnt from.
        bad: The first thousand of them: file and line, and why.
        histogram: Lowest and highest number of tokens, and the examples with so many.
        previews: Where a row stands, and its text in pieces that are learnt or not.
        updates: About as many will be made; 0 where there is nothing to learn from.
        epochs: About as many passes over the data.
        is_unpacked: The model is here in MLX's form.
        files: Where the rows are, if a data set of the hub is among them.
        sha256: Of the rows that are used.
    """

    lines: tuple[str, ...]
    n_train: int
    n_valid: int
    n_tokens: int
    n_learnt: int
    n_bad: int
    bad: tuple[tuple[str, str], ...]
    histogram: tuple[tuple[int, int, int], ...]
    previews: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]
    updates: int
    epochs: float
    is_unpacked: bool
    files: tuple[str, ...]
    sha256: str


def check_spec(recipe: Recipe) -> JobSpec:
    """The job that reads the rows of ``recipe``; a cancel ends it at once, and it waits for nobody."""
    arguments = {"recipe": recipe.model_dump(mode="json")}
    title = f"rows of {', '.join(recipe.data)}"
    return JobSpec("check", title, "finetune.check_job:check_rows", arguments, heavy=False, interrupt="cancel")


def check_rows(context: JobContext) -> dict[str, Any]:
    """Read the rows; the findings are in the job's directory (:func:`read_findings`), the result is a ``summary``.

    Raises:
        DataError: A file cannot be read at all.
        StoreError: A data set of the hub cannot be fetched.
        InvalidModelError: The model's tokenizer cannot be read.
    """
    recipe = Recipe.model_validate(context.arguments["recipe"])
    fetched = fetch_named(
        recipe.data,
        context.home,
        progress=lambda item, done, total: context.emit(Progress("fetch", done, total, item, "B")),
        check_cancelled=context.check_cancelled,
    )
    settings = load_settings(context.home.settings_file)
    prepare_process(settings.threads, cpu=settings.gpu_layers == 0)
    # Deferred: mlx binds its BLAS as it is imported, so what imports it comes after prepare_process; transformers, 2 s.
    from finetune.base_model import find_in_mlx_form
    from finetune.check import report_of
    from finetune.data.dataset import scan
    from finetune.data.files import find_files
    from finetune.data.formatter import ChatFormatter
    from finetune.tokenizer import load_tokenizer

    found = find_files(recipe.data, fetched)
    store = ModelStore(context.home)
    manifest = store.resolve(recipe.model)
    formatter = ChatFormatter(load_tokenizer(store, manifest), recipe.train_on)
    data = scan(
        recipe,
        formatter,
        found=found,
        progress=lambda item, done, total: context.emit(Progress("check", done, total, item)),
        check_cancelled=context.check_cancelled,
    )
    report = report_of(str(manifest.model_name), data, formatter)
    updates, epochs = _expected(recipe, data)
    findings = Findings(
        lines=tuple(report.data.lines()),
        n_train=report.n_train,
        n_valid=report.n_valid,
        n_tokens=report.n_tokens,
        n_learnt=report.n_learnt,
        n_bad=len(report.data.bad),
        bad=tuple((bad.source, bad.reason) for bad in report.data.bad[:_BAD_KEPT]),
        histogram=tuple((each.low, each.high, each.count) for each in report.histogram),
        previews=tuple((shown.source, _beginning(shown.pieces)) for shown in report.previews),
        updates=updates,
        epochs=epochs,
        is_unpacked=find_in_mlx_form(store, manifest) is not None,
        files=tuple(str(file.path) for file in found[0]) if fetched else (),
        sha256=report.sha256,
    )
    write_atomic(context.out / _FILE, json.dumps(asdict(findings), ensure_ascii=False).encode("utf-8", "replace"))
    return {"summary": " ".join(findings.lines)}


def read_findings(job: Job) -> Findings:
    """What a job of :func:`check_spec` that is done has found.

    Raises:
        JobError: The file is gone or damaged.
    """
    path = job.out / _FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: _tuples(value) if isinstance(value, list) else value for name, value in fields.items()}
        return Findings(**lists)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise JobError(f"{path} cannot be read.", "Check the rows again.") from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _beginning(pieces: "tuple[Piece, ...]") -> tuple[tuple[str, bool], ...]:
    """As much of a row as anyone reads on a screen."""
    shown: list[tuple[str, bool]] = []
    room = _PREVIEW_CHARS
    for piece in pieces:
        if room <= 0:
            break
        shown.append((piece.text if len(piece.text) <= room else piece.text[:room] + "…", piece.learnt))
        room -= len(piece.text)
    return tuple(shown)


def _expected(recipe: Recipe, data: "Dataset") -> tuple[int, float]:
    """Updates, and passes over the data, as a model that can be packed and fits in memory is trained."""
    from finetune.resolve import batch_tokens, capacity_of, schedule_of  # deferred, as above

    if not data.train:
        return 0, 0.0
    packed = recipe.packing is not False
    capacity = capacity_of(recipe, [*data.train, *data.valid], packed=packed)
    wanted = batch_tokens(recipe, data.train)
    rows = max(1, min(wanted, recipe.micro_tokens or _FORWARD_TOKENS) // capacity)
    schedule = schedule_of(
        recipe,
        data.train,
        capacity=capacity,
        rows=rows,
        wanted=wanted,
        packed=packed,
        has_valid=bool(data.valid),
    )
    n_tokens = sum(len(example.tokens) for example in data.train)
    return schedule.n_steps, schedule.n_steps * schedule.accumulate * rows * capacity / n_tokens
