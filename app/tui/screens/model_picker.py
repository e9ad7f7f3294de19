"""Pick a model: what is here, and whether it fits in this machine's memory; fetch the starter when nothing is here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Label, OptionList, ProgressBar, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from app.tui.job_rows import start_or_join, under_way
from app.tui.markdown import harmless
from app.tui.styles import MUTED
from localllm.adapters import AdapterStore
from localllm.errors import LocalLLMError
from localllm.jobs.events import Progress
from localllm.jobs.record import JobSpec
from localllm.jobs.store import JobStore
from localllm.memory import fit, gigabytes, machine_memory
from localllm.models.aliases import ALIASES
from localllm.models.manifest import Manifest
from localllm.models.pull_job import pull_spec
from localllm.models.store import ModelStore
from localllm.sanitize import one_line
from serve.registry import Registry

STARTER = "starter"
_NAME = 28  # cells for a name: the verdict matters more than the end of a long one
_WIDTH = 68  # cells that the style sheet leaves for a line
_LOOK_SECONDS = 0.1
_STAGES = {
    "wait": "Another process is fetching",
    "resolve": "Looking it up",
    "download": "Fetching",
    "verify": "Checking",
    "install": "Placing",
}

Verdict = Literal["fits", "too big", "unknown", "…"]


@dataclass(frozen=True)
class Row:
    """A model as the list shows it.

    Attributes:
        name: In the store.
        size: Bytes on the disk.
        quantization: ``Q4_1``, …
        verdict: Whether it fits in the memory; ``…`` while that is being found out.
        detail: The context that fits, or what is missing.
    """

    name: str
    size: int
    quantization: str
    verdict: Verdict = "…"
    detail: str = ""


def check_fit(store: ModelStore, manifest: Manifest, row: Row, n_ctx: int, memory_gb: float) -> Row:
    """Read a model's header and say whether it fits. Reads the disk: call it in a thread."""
    # 20 ms of imports that only this list needs.
    from localllm.memory_safetensors import files_shape

    try:
        found = fit(files_shape(store.paths(manifest)), machine_memory(memory_gb), n_ctx)
    except LocalLLMError:
        return replace(row, verdict="unknown", detail="cannot be read")
    if not found.fits:
        return replace(row, verdict="too big", detail=f"needs {gigabytes(found.need.total)}")
    return replace(row, verdict="fits", detail=f"{found.n_ctx} tok · {gigabytes(found.need.total)}")


class ModelPicker(ModalScreen[str | None]):
    """Answers with the name of the model that was picked; None when it was left.

    Args:
        store: The models.
        jobs: A download is one: it goes on when the app is left, and is shown again when it comes back.
        current: The model in use; it is highlighted.
        n_ctx: Context asked for in the settings; 0 for the largest that fits.
        memory_gb: Memory for models in the settings; 0 for the machine's.
        spec: The job that fetches a source; as ``localllm.models.pull_job.pull_spec``.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", id="picker.close"),
        Binding("j", "move(1)", show=False, id="picker.down"),
        Binding("k", "move(-1)", show=False, id="picker.up"),
    ]

    def __init__(
        self,
        store: ModelStore,
        jobs: JobStore,
        current: str,
        *,
        n_ctx: int = 0,
        memory_gb: float = 0,
        spec: Callable[[str], JobSpec] = pull_spec,
    ) -> None:
        super().__init__()
        self._store = store
        self._jobs = jobs
        self._current = current
        self._n_ctx = n_ctx
        self._memory_gb = memory_gb
        self._spec = spec

    def compose(self) -> ComposeResult:
        """The list, and what a download is doing."""
        with Vertical(classes="dialog", id="picker"):
            yield Label("Models", classes="dialog-title", markup=False)
            yield OptionList(id="models", markup=False)
            yield Static(id="pull-stage", markup=False)
            yield ProgressBar(id="pull-bar", show_eta=True)
            yield Label("Enter uses it · Esc closes", classes="dialog-hint", markup=False)

    def on_mount(self) -> None:
        """Read the store."""
        self._pulling(False)
        self._read()
        self._pull(start=False)

    def action_move(self, step: int) -> None:
        """Move through the list."""
        models = self.query_one("#models", OptionList)
        models.action_cursor_down() if step > 0 else models.action_cursor_up()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Use a model, or fetch the starter."""
        if event.option.id == STARTER:
            if not self.query_one("#pull-bar").display:
                self._pulling(True)
                self._pull(start=True)
        else:
            self.dismiss(event.option.id)

    @work(thread=True, exclusive=True, group="models")
    def _read(self) -> None:
        # The names at once, then each model's fit as its header is read.
        found = Registry(self._store, AdapterStore(self._store.home)).list()
        rows = [Row(served.name, served.size, served.manifest.quantization) for served in found]
        self.app.call_from_thread(self._show, rows)
        for index, served in enumerate(found):
            if get_current_worker().is_cancelled:
                return
            rows[index] = check_fit(self._store, served.manifest, rows[index], self._n_ctx, self._memory_gb)
            self.app.call_from_thread(self._show, list(rows))

    def _show(self, rows: Sequence[Row]) -> None:
        models = self.query_one("#models", OptionList)
        at = models.highlighted
        widest = min(_NAME, max((len(row.name) for row in rows), default=0))
        options = [Option(_describe(row, self._current, widest), id=row.name) for row in rows]
        starter = ALIASES[STARTER]
        if str(starter.name) not in {row.name for row in rows}:
            options.append(Option(_offer(str(starter.name), starter.size), id=STARTER))
        models.clear_options()
        models.add_options(options)
        names = [row.name for row in rows]
        models.highlighted = at if at is not None else names.index(self._current) if self._current in names else 0

    # Who watches outlives this window: the end of the download is told wherever the person is then.
    def _pull(self, *, start: bool) -> None:
        self.app.run_worker(partial(self._pull_starter, start), thread=True, group="pull", exclusive=True)

    def _pull_starter(self, start: bool) -> None:
        worker, app = get_current_worker(), self.app
        spec = self._spec(STARTER)
        try:
            job = start_or_join(self._jobs, spec) if start else under_way(self._jobs, spec)
            if job is None:
                return
            status = job.status()
            while not status.has_ended:
                if worker.is_cancelled:
                    return  # the app is closing: the job goes on
                app.call_from_thread(self._show_progress, job.latest().progress)
                time.sleep(_LOOK_SECONDS)
                status = job.status()
        except LocalLLMError as error:
            app.call_from_thread(self._pull_failed, str(error))
            return
        if status.state == "done":
            app.call_from_thread(self._pulled, str(status.result["name"]))
        else:
            app.call_from_thread(self._pull_failed, f"{status.message} {status.hint}".strip() or "It was cancelled.")

    def _show_progress(self, now: Progress | None) -> None:
        if not self.is_attached:
            return
        self._pulling(True)
        if now is not None:
            stage = f"{_STAGES.get(now.stage, now.stage)} {one_line(now.item, 50)}"
            self.query_one("#pull-stage", Static).update(Content(stage))
            self.query_one(ProgressBar).update(total=now.total, progress=now.done)

    def _pull_failed(self, why: str) -> None:
        self.app.notify(
            harmless(why), title="The model could not be fetched", severity="error", markup=False, timeout=15
        )
        if self.is_attached:
            self._pulling(False)

    def _pulled(self, name: str) -> None:
        if self.is_active:
            self.dismiss(name)
        else:
            self.app.notify(f"{name} is here. Pick it with Ctrl+O.", markup=False)

    def _pulling(self, now: bool) -> None:
        self.query_one("#pull-stage").display = now
        self.query_one("#pull-bar").display = now


def _describe(row: Row, current: str, widest: int) -> Content:
    mark = "▸ " if row.name == current else "  "
    sign = {"fits": ("✓", "$success"), "too big": ("✗", "$error")}.get(row.verdict, ("·", MUTED))
    size = f"{row.size / 1e9:.1f} GB" if row.size >= 1e9 else f"{row.size / 1e6:.0f} MB"
    return Content.assemble(
        f"{mark}{one_line(row.name, widest):<{widest}}  ",
        (f"{size:>7} {one_line(row.quantization, 7):<7} ", MUTED),
        sign,
        (f" {one_line(row.detail, 40)}", MUTED),
    ).truncate(_WIDTH, ellipsis=True)


def _offer(name: str, size: int) -> Content:
    return Content.assemble(("+ ", "$accent"), f"Fetch {name}", (f"  {size / 1e6:.0f} MB, to start with", MUTED))
