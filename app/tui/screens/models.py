"""The models and adapters that are here: what each is and what it was made from; pull, export, delete."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option

from app.cli.output import human_bytes
from app.tui.job_rows import start_or_join
from app.tui.library import Entry, Library
from app.tui.markdown import harmless
from app.tui.screens.deeds import DeedsScreen
from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog, LineDialog
from app.tui.screens.help import HelpScreen
from app.tui.session import Session
from app.tui.styles import MUTED
from app.tui.widgets.job_bar import JobBar
from app.tui.widgets.key_bar import KeyBar
from localllm.adapters import AdapterManifest, AdapterStore, split_name
from localllm.errors import UsageError
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec
from localllm.models.manifest import Manifest
from localllm.sanitize import one_line

KINDS = ("pull", "export", "quantize")
_NONE = "No model is here yet. Press p, and write `starter` for a small one."
_WIDE = 100
_FORMS = {
    "gguf": "one file, for llama.cpp and what is built on it",
    "hf": "a directory, for transformers",
    "mlx": "the same directory, for mlx-lm",
}


class ModelsScreen(DeedsScreen):
    """Lists what is here, shows the highlighted one; answers with a model to chat with, or None.

    Args:
        session: What the app holds.
        clock: Seconds since the epoch.
    """

    AUTO_FOCUS = "#library"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "chat", "Chat", id="library.chat", tooltip="Chat with it; Enter does it too"),
        Binding("p", "pull", "Pull", id="library.pull", tooltip="Fetch a model or an adapter"),
        Binding("e", "export", "Export", id="library.export", tooltip="The same model in another form"),
        Binding("d,delete", "delete", "Delete", id="library.delete", tooltip="Delete it, after a question"),
        Binding("escape", "leave", "Back", id="library.back", tooltip="Back; what was started goes on"),
        Binding("j", "move(1)", show=False, id="library.down"),
        Binding("k", "move(-1)", show=False, id="library.up"),
    ]

    def __init__(self, session: Session, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._session = session
        self._library = Library(session.store, AdapterStore(session.home))
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._shown: str | None = None  # the name of the highlighted one

    def compose(self) -> ComposeResult:
        """The list, below it the one that is highlighted, and below that what is being done."""
        with Vertical(id="library-main"):
            yield Label("Models", id="library-title", markup=False)
            yield OptionList(id="library", markup=False)
            yield Static(id="library-facts", markup=False)
            yield JobBar(self._session.jobs, KINDS, self._clock)
        yield KeyBar()

    def on_mount(self) -> None:
        """Read the store."""
        self._read()

    def on_screen_resume(self) -> None:
        """Another screen, or another window, may have changed it."""
        self._read()

    def on_resize(self) -> None:
        """Columns are as wide as there is room for."""
        self._fill()

    # ── reading, in threads ──

    @work(thread=True, exclusive=True, group="library")
    def _read(self, highlight: str = "") -> None:
        self.app.call_from_thread(self._show, self._library.entries(), highlight)

    def _show(self, entries: Sequence[Entry], highlight: str) -> None:
        if not self.is_attached:
            return
        at = list(self._entries).index(self._shown) if self._shown in self._entries else 0
        self._entries = {entry.name: entry for entry in entries}
        names = list(self._entries)
        wanted = highlight or self._shown or split_name(self._session.model)[0]
        if wanted not in self._entries:  # the next one, where the highlighted one was deleted
            wanted = names[min(at, len(names) - 1)] if names else ""
        self._shown = wanted or None
        self._fill()
        self._read_facts()
        self.refresh_bindings()

    def _fill(self) -> None:
        options, names = self.query_one("#library", OptionList), list(self._entries)
        with self.prevent(OptionList.OptionHighlighted):
            options.clear_options()
            options.add_options([Option(self._describe(entry), id=name) for name, entry in self._entries.items()])
            options.highlighted = names.index(self._shown) if self._shown in self._entries else None

    @work(thread=True, exclusive=True, group="facts")
    def _read_facts(self) -> None:
        entry, settings = self._entries.get(self._shown or ""), self._session.settings
        facts = [("", _NONE)] if entry is None else self._library.facts(entry, settings.ctx, settings.memory_gb)
        self.app.call_from_thread(self._show_facts, entry, facts)

    def _show_facts(self, entry: Entry | None, facts: Sequence[tuple[str, str]]) -> None:
        if self.is_attached and (entry.name if entry else None) == self._shown:
            lines = [Content.assemble((f"{word:<10}" if word else "", MUTED), harmless(text)) for word, text in facts]
            self.query_one("#library-facts", Static).update(Content("\n").join(lines))

    def _describe(self, entry: Entry) -> Content:
        wide = self.size.width >= _WIDE
        room = max(16, self.size.width - (54 if wide else 36))
        base, adapters = split_name(self._session.model)
        mark = "▸ " if entry.name in (base, *(f"+{name}" for name in adapters)) else "  "
        branch = "  " * (min(entry.depth, 6) - 1) + "└ " if entry.depth else ""
        n_ctx, licence = 0, ""
        if isinstance(entry.item, Manifest):
            n_ctx, licence = entry.item.n_ctx_train, entry.item.licence
        context = f"{n_ctx // 1024}k" if n_ctx >= 1024 else str(n_ctx or "")
        name = harmless(one_line(entry.name, room - len(branch)))
        return Content.assemble(
            (mark, "$accent"),
            (branch, MUTED),
            f"{name:<{room - len(branch)}} ",
            (f"{human_bytes(entry.size):>8} {one_line(entry.type, 8):<8} {context:>5}", MUTED),
            (harmless(f"  {one_line(licence, 16)}") if wide else "", MUTED),
        )

    @on(OptionList.OptionHighlighted, "#library")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option.id != self._shown:
            self._shown = event.option.id
            self._read_facts()
            self.refresh_bindings()

    @on(JobBar.Ended)
    def _job_ended(self, event: JobBar.Ended) -> None:
        status, title = event.row.status, one_line(event.row.job.spec.title, 60)
        name = str(status.result.get("name", ""))
        if status.state == "done":
            self.say(f"{name or title} is here.")
        elif status.state == "cancelled":
            self.say(f"Cancelled: {title}", "warning")
        else:
            self.say(f"{title}: {status.message} {status.hint}".rstrip(), "error")
        self._read(name)

    # ── keys ──

    def action_move(self, step: int) -> None:
        """Move through the list."""
        options = self.query_one("#library", OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    def action_help(self) -> None:
        """Show all keys."""
        self.app.push_screen(HelpScreen((("Everywhere", self.app.BINDINGS), ("On a model", self.BINDINGS))))

    def action_leave(self) -> None:
        """Back to where the person came from."""
        self.dismiss(None)

    @on(OptionList.OptionSelected, "#library")
    def action_chat(self) -> None:
        """Go to the chat with it."""
        self.in_thread(self._chat)

    def action_pull(self) -> None:
        """Ask for a source, and fetch it."""
        title = "Fetch: starter, org/repo, pypi:NAME, ollama:NAME, or a path"
        dialog = LineDialog(title, "", "fetches it")
        self.app.push_screen(dialog, lambda source: self.in_thread(partial(self._pull, source or "")))

    def action_export(self) -> None:
        """Ask for a form, and make it."""
        self.in_thread(self._offer_forms)

    def action_delete(self) -> None:
        """Say what follows, ask, and delete."""
        self.in_thread(self._ask_to_delete)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002  Textual's shape
        """Offer only what can be done with the highlighted one."""
        entry = self._entries.get(self._shown or "")
        match action:
            case "export":
                return entry is not None and isinstance(entry.item, Manifest)
            case "delete" | "chat":
                return entry is not None
        return True

    # ── deeds, in threads ──

    def failed(self, text: str) -> None:
        """Tell it, and look anew: another window may have changed what is here."""
        super().failed(text)
        self._read()

    def _chat(self) -> None:
        entry = self._entries.get(self._shown or "")
        if entry is not None:
            self.app.call_from_thread(self.answer, self._library.chat_name(entry))

    def _pull(self, source: str) -> None:
        if source:
            self._start(self._library.fetch_spec(source))

    def _start(self, spec: JobSpec | str) -> None:
        """Start a job and follow it; a name is of what is here already."""
        if isinstance(spec, str):
            self.app.call_from_thread(self.say, f"{spec} is here.")
            self.app.call_from_thread(self._read, spec)
        else:
            self.app.call_from_thread(self._follow, start_or_join(self._session.jobs, spec))

    def _follow(self, job: Job) -> None:
        if self.is_attached:
            self.query_one(JobBar).follow(job)

    def _offer_forms(self) -> None:
        # Deferred: the formats bring numpy (100 ms), which the list does not need.
        from quant.forms import listed_forms, parse_form

        entry = self._entries.get(self._shown or "")
        if entry is None or not isinstance(entry.item, Manifest):
            return
        choices = []
        for form in listed_forms():
            try:
                parse_form(form, entry.item)
            except UsageError:
                continue  # it is in that form already
            choices.append((form, _FORMS[form.partition(":")[0]]))
        dialog = ChoiceDialog(f"Export {one_line(entry.name, 50)} to", choices)
        self.app.call_from_thread(self.ask, dialog, partial(self._export_to, entry))

    def _export_to(self, entry: Entry, form: str | None) -> None:
        if form is not None:
            self.in_thread(partial(self._export, entry, form))

    def _export(self, entry: Entry, form: str) -> None:
        from quant.jobs import export_spec  # deferred, as above

        spec, found = export_spec(self._session.store, entry.name, form)
        self._start(spec if found is None else str(found.model_name))

    def _ask_to_delete(self) -> None:
        entry = self._entries.get(self._shown or "")
        if entry is None:
            return
        # What is being loaded is not ready yet, and as much in use.
        said = self._library.consequences(entry, {*self._session.ready, self._session.model})
        what = "adapter" if isinstance(entry.item, AdapterManifest) else "model"
        dialog = ConfirmDialog(f"Delete the {what} {one_line(entry.name, 50)}?", said, "deletes it")
        self.app.call_from_thread(self.ask, dialog, partial(self._delete_if, entry))

    def _delete_if(self, entry: Entry, yes: bool | None) -> None:
        if yes:
            self.in_thread(partial(self._delete, entry))

    def _delete(self, entry: Entry) -> None:
        note = self._library.delete(entry)
        self.app.call_from_thread(self.say, f"Deleted {one_line(entry.name, 60)}: {one_line(note, 80)}.")
        self.app.call_from_thread(self._read)
