"""The terminal app."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme

from app.tui import clipboard
from app.tui.export import export_picture
from app.tui.job_rows import running_titles
from app.tui.markdown import harmless
from app.tui.screens.chat import ChatScreen
from app.tui.session import Connect, Session
from app.tui.themes import DARK, LIGHT
from localllm.adapters import split_name
from localllm.conversations import ConversationStore
from localllm.errors import LocalLLMError
from localllm.jobs.job import Job
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.settings import Settings, save_setting

if TYPE_CHECKING:
    from app.tui.screens.train import TrainScreen
    from serve.client import ServeClient


_LEAVE_SECONDS = 5.0
_TRAIN = "train"
_KEY_NAMES = {"pgup": "PgUp", "pgdn": "PgDn"}


class LocalLLMApp(App[None]):
    """One chat screen over a local server.

    Args:
        home: Where everything lives; its directories exist.
        settings: What the person set.
        store: The models.
        conversations: The messages; closed by whoever opened them.
        connect: Finds or starts the server; called as ``connect(home, settings, on_status=…)``.
        clock: Seconds since the epoch, for the headings of the list.
        jobs: Long work; the home's own by default.
    """

    TITLE = "localllm"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Keys", id="app.help", tooltip="This list"),
        Binding(
            "question_mark", "help", "Keys", id="app.help_letter", show=False, tooltip="This list, while not writing"
        ),
        Binding("ctrl+p", "command_palette", "Palette", id="app.palette", tooltip="Everything, by its name"),
        Binding("f5", "jobs", "Jobs", id="app.jobs", show=False, tooltip="Long work: what runs, what ended and how"),
        # Before the prompt: a text area takes F6 and F7 to select.
        Binding(
            "f6",
            "library",
            "Models",
            id="app.library",
            show=False,
            priority=True,
            tooltip="All models: pull, export, delete",
        ),
        Binding(
            "f7",
            "compress",
            "Compress",
            id="app.compress",
            show=False,
            priority=True,
            tooltip="Make a model smaller: what it could become, and what fits",
        ),
        Binding(
            "f10",
            "train",
            "Train",
            id="app.train",
            show=False,
            priority=True,
            tooltip="Train a model on your own rows, and watch it",
        ),
        Binding("f9", "toggle_dark", "Light/dark", id="app.theme", show=False, tooltip="Light or dark colours"),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True, tooltip="Quit; everything is saved"),
    ]

    def __init__(
        self,
        home: Home,
        settings: Settings,
        store: ModelStore,
        conversations: ConversationStore,
        connect: Connect,
        *,
        clock: Callable[[], float] | None = None,
        jobs: JobStore | None = None,
    ) -> None:
        super().__init__()
        self.home = home
        self.session = Session(home, settings, store, conversations, connect, jobs=jobs)
        self._clock = clock
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = settings.theme if settings.theme in self.available_themes else DARK.name

    def get_default_screen(self) -> Screen[None]:
        """The chat."""
        return ChatScreen(self.session, self._clock) if self._clock else ChatScreen(self.session)

    def on_mount(self) -> None:
        """Keep the theme that a person picks; leave in order when the terminal is closed."""
        self.theme_changed_signal.subscribe(self, self._save_theme)
        for end in (signal.SIGHUP, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(end, self._leave, end)
        self.run_worker(self._tell_of_jobs(), group="jobs")

    async def on_unmount(self) -> None:
        """However the app ends: save what is being written, and leave the server."""
        await self.session.close()

    def action_help(self) -> None:
        """Show the keys, unless a window lies over the screen."""
        show = getattr(self.screen, "action_help", None)
        if show is not None:
            show()

    def action_toggle_dark(self) -> None:
        """Change between our light and dark colours."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    async def action_jobs(self) -> None:
        """Show the long work, over whatever is shown."""
        # Deferred: nobody needs it for the first picture.
        from app.tui.screens.jobs import JobsScreen

        if not await self._back_to(JobsScreen):
            self.push_screen(JobsScreen(self.session.jobs, self._clock or time.time), self._left_jobs)

    async def _left_jobs(self, training: Job | None) -> None:
        if training is not None:
            (await self._open_train()).show_training(training)

    async def action_library(self) -> None:
        """Show the models, over whatever is shown."""
        # Deferred: nobody needs it for the first picture.
        from app.tui.screens.models import ModelsScreen

        if isinstance(self.screen, ModelsScreen):
            self.screen.action_leave()
        elif not await self._back_to(ModelsScreen):
            self.push_screen(ModelsScreen(self.session, self._clock or time.time), self._left_library)

    async def action_compress(self) -> None:
        """Show what the model in use could become, over whatever is shown."""
        # Deferred: nobody needs it for the first picture.
        from app.tui.screens.compress import CompressScreen

        if isinstance(self.screen, CompressScreen):
            self.screen.action_leave()
        elif not await self._back_to(CompressScreen):
            model = split_name(self.session.model)[0]
            self.push_screen(CompressScreen(self.session, model, self._clock or time.time))

    async def action_train(self) -> None:
        """Show what trains, else the choices of a new training, over whatever is shown."""
        # Deferred: recipes bring YAML (30 ms), which nobody needs for the first picture.
        from app.tui.screens.train import TrainScreen
        from app.tui.screens.train_run import TrainRunScreen

        if isinstance(self.screen, TrainScreen | TrainRunScreen):
            await self._back_to(TrainScreen)
            self.screen.dismiss(None)
        elif not (await self._back_to(TrainRunScreen) or await self._back_to(TrainScreen)):
            (await self._open_train()).show_running()

    async def _open_train(self) -> "TrainScreen":
        """The choices of a training, with nothing over them."""
        from app.tui.screens.train import TrainScreen  # deferred, as above

        if not self.is_screen_installed(_TRAIN):
            # Installed, so that choices and findings are there again when a person comes back.
            self.install_screen(TrainScreen(self.session, self._clock or time.time), _TRAIN)
        if not await self._back_to(TrainScreen):
            await self.push_screen(_TRAIN, self._left_library)
        return self.get_screen(_TRAIN, TrainScreen)

    async def _back_to(self, kind: type[Screen[Any]]) -> bool:
        """Close what lies over a screen of this kind; False when none is open."""
        if not any(isinstance(screen, kind) for screen in self.screen_stack):
            return False
        while not isinstance(self.screen, kind):
            await self.pop_screen()
        return True

    async def _left_library(self, name: str | None) -> None:
        chat = next(screen for screen in self.screen_stack if isinstance(screen, ChatScreen))
        if name is None:
            chat.recheck_model()  # what it uses may have been deleted
        else:
            await self._back_to(ChatScreen)
            await chat.use_model(name)

    async def action_quit(self) -> None:
        """Save what is being written, say what goes on, and leave."""
        await self.session.close()
        self.exit(message=await self._going_on("`localllm jobs` shows it.", "`localllm jobs` shows them.") or None)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Everything the app can do, for the command palette."""
        if isinstance(screen, ChatScreen):
            yield from screen.commands()
        yield SystemCommand("Light or dark", "Change between light and dark colours", self.action_toggle_dark)
        yield SystemCommand("Theme", "Pick any colours", self.action_change_theme)
        yield SystemCommand("Jobs", "Long work: what runs, what ended and how", self.action_jobs)
        yield SystemCommand("Models", "What is here: pull, export, delete, chat with it", self.action_library)
        yield SystemCommand(
            "Compress", "Make a model smaller: what it could become, and what fits", self.action_compress
        )
        yield SystemCommand("Train", "Train a model on your own rows, and watch it", self.action_train)
        yield SystemCommand("Keys", "List all keys", self.action_help)
        yield SystemCommand("Screenshot", "Save a picture of the screen", self._save_picture)
        yield SystemCommand("Quit", "Everything is saved", self.action_quit)

    async def on_event(self, event: events.Event) -> None:
        """Make what is pasted harmless, wherever it goes; terminals send carriage returns for its line ends."""
        if isinstance(event, events.Paste):
            event.text = harmless(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        await super().on_event(event)

    def get_key_display(self, binding: Binding) -> str:
        """Keys as they are printed on a keyboard: ``Ctrl+N``, ``Alt+↑``, ``F1``."""
        *modifiers, key = (
            super().get_key_display(binding).replace("^", "ctrl+").split("+") if binding.key != "+" else ["+"]
        )
        names = [modifier.capitalize() for modifier in modifiers]
        single = len(key) == 1 and not modifiers  # a letter pressed alone stays small
        return "+".join([*names, key if single else _KEY_NAMES.get(key, key.capitalize())])

    def copy_to_clipboard(self, text: str) -> None:
        """Copy through the terminal (OSC 52), and on a Mac's own screen through the system too."""
        super().copy_to_clipboard(text)
        self.run_worker(partial(clipboard.copy, text), thread=True, group="clipboard")

    async def _tell_of_jobs(self) -> None:
        text = await self._going_on("F5 shows it.", "F5 shows them.")
        if text:
            self.notify(text, markup=False)

    async def _going_on(self, one: str, several: str) -> str:
        """Which jobs run; empty for none."""
        try:
            titles = await asyncio.to_thread(running_titles, self.session.jobs)
        except OSError:
            return ""  # on the way out nothing may stand in the way, and `localllm jobs` will say what is wrong
        if not titles:
            return ""
        listed = harmless(", ".join(one_line(title, 50) for title in titles[:3]))
        more = f" and {len(titles) - 3} more" if len(titles) > 3 else ""
        return (
            f"1 job goes on: {listed}. {one}"
            if len(titles) == 1
            else (f"{len(titles)} jobs go on: {listed}{more}. {several}")
        )

    def _leave(self, number: signal.Signals) -> None:
        # Where the terminal has gone, the thread that writes to it dies and whoever writes more waits for ever: this
        # process then ends by force, with everything saved but perhaps the last second of an answer.
        last_resort = threading.Timer(_LEAVE_SECONDS, os._exit, [128 + number])
        last_resort.daemon = True
        last_resort.start()
        self.run_worker(self.action_quit())

    def _save_picture(self) -> None:
        try:
            file = export_picture(self.home, self.export_screenshot())
        except (LocalLLMError, OSError) as error:
            self.notify(f"The picture could not be saved: {error}", severity="error", markup=False)
        else:
            self.notify(f"Saved as {file}", markup=False)

    def _save_theme(self, theme: Theme) -> None:
        try:
            save_setting(self.home.settings_file, "theme", theme.name)
        except LocalLLMError as error:
            self.notify(str(error), severity="error", markup=False)


def run_app(home: Home, settings: Settings) -> int:
    """Run the app on this terminal until the person leaves it; return the exit code.

    Raises:
        ConversationError: The conversations cannot be opened.
        SettingsError: The home cannot be used.
    """
    home.ensure()
    conversations = ConversationStore(home.database)
    try:
        conversations.purge()
        app = LocalLLMApp(home, settings, ModelStore(home), conversations, _connect)
        app.run()
        return app.return_code or 0
    finally:
        conversations.close()
        sys.stdout.flush()


async def _connect(home: Home, settings: Settings, *, on_status: Callable[[str], None] | None = None) -> "ServeClient":
    # Deferred: the HTTP client costs 100 ms, which the first picture of the app need not wait for.
    from serve.discovery import connect

    return await connect(home, settings, on_status=on_status)
