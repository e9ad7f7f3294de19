"""The choices of a training: a screen that knows how to change them, and to write them into a recipe."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from textual import events, on, work
from textual.content import Content
from textual.widgets import Static

from app.cli.output import human_bytes
from app.tui.markdown import harmless
from app.tui.screens.deeds import DeedsScreen
from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog
from app.tui.screens.train_dialogs import PathsDialog, SettingDialog
from app.tui.session import Session
from app.tui.train_paths import describe_paths, split_paths
from app.tui.train_setup import Setup, save_recipe, setting, settled, trainable
from app.tui.widgets.setup_form import Known, SetupForm
from localllm.adapters import split_name
from localllm.errors import LocalLLMError
from localllm.models.manifest import Manifest
from localllm.sanitize import one_line
from localllm.typed_paths import is_there, typed_path

_NO_MODEL = "No model is here yet. F6 leads to the models, and there p fetches one."


class ChoicesScreen(DeedsScreen):
    """Holds a :class:`SetupForm` and ``#train-problem``, and changes what they show.

    Attributes:
        session: What the app holds.
        setup: What is chosen.
        known: What was found out about it.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.setup = Setup(model=split_name(session.model)[0])
        self.known = Known()
        self._problem = ""

    def on_screen_resume(self) -> None:
        """Another screen, or another window, may have changed the models and adapters."""
        self.settle(self.setup)

    def on_resize(self) -> None:
        """Lines are as long as there is room for."""
        self.fill()

    # ── the choices ──

    def choose(self, setup: Setup) -> None:
        """Go on with other choices."""
        self.setup = setup
        self.settle(setup)
        self.fill()

    def fill(self) -> None:
        """Draw the choices, and what is wrong with them."""
        self.query_one(SetupForm).show(self.setup, self.known)
        problem = self.query_one("#train-problem", Static)
        problem.display = bool(self._problem)
        problem.update(Content.styled(harmless(self._problem), "$error"))
        self.refresh_bindings()

    @work(thread=True, exclusive=True, group="settle")
    def settle(self, asked: Setup) -> None:
        """Find out what the choices come to: the adapter's name, how much data that is, what is wrong."""
        store, setup, known, problem = self.session.store, asked, Known(), ""
        try:
            found = store.resolve(asked.model) if asked.model else next(iter(trainable(store)), None)
            if found is not None:
                setup, known = replace(asked, model=str(found.model_name)), Known(model=_about(found))
            if setup.is_complete:
                spec = settled(store, self.session.jobs, setup)
                known = replace(known, name=spec.arguments["recipe"]["name"])
        except LocalLLMError as error:
            problem = str(error)
        try:
            known = replace(known, data=describe_paths(setup.data) if setup.data else "")
        except (LocalLLMError, OSError) as error:
            known = replace(known, data=str(error), data_is_wrong=True)
        self.app.call_from_thread(self._settled, asked, setup, known, problem)

    def _settled(self, asked: Setup, setup: Setup, known: Known, problem: str) -> None:
        if not self.is_attached or self.setup != asked:
            return  # something else was chosen meanwhile, and is being looked at
        self._problem = problem
        self.known = replace(known, updates=self.known.updates, epochs=self.known.epochs)
        if setup != asked:
            self.choose(setup)  # the model was not named in full
        self.fill()

    # ── changing one ──

    @on(SetupForm.OptionSelected, "#setup")
    def _change(self, event: SetupForm.OptionSelected) -> None:
        match event.option.id:
            case "model":
                self.in_thread(self._offer_models)
            case "data":
                self.app.push_screen(PathsDialog(self.setup.data), self._take_data)
            case "skip_bad":
                self.choose(self.setup.with_skip_bad(skip=not self.setup.skip_bad))
            case str(name):
                self._ask_for(name)

    def _ask_for(self, name: str) -> None:
        about = setting(name)
        take = partial(self._take_setting, name)
        if about.choices:
            self.app.push_screen(ChoiceDialog(about.about, about.choices, self.setup.text(name)), take)
        else:
            value = self.setup.text(name)
            dialog = SettingDialog(about.label, about.about, value, partial(self.setup.with_text, name))
            self.app.push_screen(dialog, take)

    def _take_setting(self, name: str, text: str | None) -> None:
        if text is not None:
            self.choose(self.setup.with_text(name, text))

    def _take_data(self, paths: tuple[str, ...] | None) -> None:
        if paths is not None:
            self.choose(replace(self.setup, data=paths))

    def _take_model(self, name: str | None) -> None:
        if name is not None:
            self.choose(replace(self.setup, model=name))

    def on_paste(self, event: events.Paste) -> None:
        """A file was dropped on the terminal: take it too."""
        event.stop()
        self.in_thread(partial(self._drop, event.text))

    def _drop(self, text: str) -> None:
        paths = split_paths(text)
        about = describe_paths(paths) if paths else ""
        self.app.call_from_thread(self._dropped, paths, about)

    def _dropped(self, paths: tuple[str, ...], about: str) -> None:
        more = tuple(path for path in paths if path not in self.setup.data)
        if more:
            self.say(f"Added: {about}. Enter on `data` changes it." if self.setup.data else f"To learn from: {about}.")
            self.choose(replace(self.setup, data=(*self.setup.data, *more)))

    def _offer_models(self) -> None:
        models = trainable(self.session.store)
        if not models:
            self.app.call_from_thread(self.say, _NO_MODEL)
            return
        choices = [(str(model.model_name), f"{human_bytes(model.size)}  {_about(model)}") for model in models]
        dialog = ChoiceDialog("Train which model?", choices, self.setup.model)
        self.app.call_from_thread(self.ask, dialog, self._take_model)

    # ── the recipe ──

    def action_write(self) -> None:
        """Ask where, and write the recipe."""
        path = str(Path.cwd() / f"{self.setup.text('name') or self.known.name or 'recipe'}.yaml")
        dialog = SettingDialog("Write the recipe to", "A YAML file, for `localllm finetune FILE`.", path, str)
        self.app.push_screen(dialog, self._write_to)

    def _write_to(self, path: str | None) -> None:
        if path:
            self.in_thread(partial(self._write, self.setup, typed_path(path)))

    def _write(self, setup: Setup, path: Path, *, over: bool = False) -> None:
        if is_there(path) and not over:
            again = partial(self._write, setup, path, over=True)
            dialog = ConfirmDialog("Write over this file?", [str(path)], "writes over it")
            self.app.call_from_thread(self.ask, dialog, lambda yes: self.in_thread(again) if yes else None)
            return
        save_recipe(setup, self.session.store, self.session.jobs, path)
        self.app.call_from_thread(self.say, f"Saved as {path}; `localllm finetune` with this path trains the same.")


def _about(model: Manifest) -> str:
    """What a model is, and what training does with it first."""
    kind = "GGUF, unpacked once first" if model.format == "gguf" else "MLX"
    return f"{one_line(model.quantization, 12)} {kind}".lstrip()
