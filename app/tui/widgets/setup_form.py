"""The choices of a training, one a line. Enter on a line changes it; how, the screen decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from app.tui.markdown import harmless
from app.tui.styles import MUTED
from app.tui.train_setup import SETTINGS, Setup, default_text
from localllm.sanitize import one_line

_LABEL = 15
_ALPHA = 32.0


@dataclass(frozen=True)
class Known:
    """What was found out about the choices.

    Attributes:
        name: The adapter's name.
        model: About the model, in words.
        data: About the files, in words.
        data_is_wrong: They cannot be used.
        updates: As many will be made, or about as many; empty while unknown.
        epochs: About as many passes; empty while unknown.
    """

    name: str = ""
    model: str = ""
    data: str = ""
    data_is_wrong: bool = False
    updates: str = ""
    epochs: str = ""


@dataclass(frozen=True)
class _Row:
    name: str
    label: str
    value: str
    note: str = ""
    is_default: bool = False
    is_wrong: bool = False


class SetupForm(OptionList):
    """Shows a setup; the ids of its options are ``model``, ``data``, ``skip_bad`` and the names of settings."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Change", id="setup.change", tooltip="Change the highlighted choice")
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  the name Textual gives it
        super().__init__(id=id, markup=False)

    def show(self, setup: Setup, known: Known) -> None:
        """Draw the choices anew; the highlighted line stays."""
        rows = _rows(setup, known)
        if self.option_count:
            for row in rows:
                self.replace_option_prompt(row.name, self._describe(row))
        else:
            self.add_options([Option(self._describe(row), id=row.name) for row in rows])
            self.highlighted = 1 if setup.model else 0

    def _describe(self, row: _Row) -> Content:
        note = f"  {one_line(row.note)}" if row.note else ""
        value = _cut(one_line(row.value), self.size.width - _LABEL - len(note) - 1)
        line = Content.assemble(
            (f"{row.label:<{_LABEL}}", MUTED),
            (harmless(value), MUTED if row.is_default else ""),
            (harmless(note), "$error" if row.is_wrong else MUTED),
        )
        return line.truncate(max(30, self.size.width - 1), ellipsis=True)


def _cut(text: str, room: int) -> str:
    """The end of a long path says most."""
    room = max(20, room)
    if Content(text).cell_length <= room:
        return text
    text = text[-room:]
    while Content(text).cell_length >= room:
        text = text[1:]
    return f"…{text}"


def short_paths(paths: Sequence[str]) -> str:
    """Paths in a few words: their names, and where the only one is."""
    if len(paths) == 1:
        path = Path(paths[0])
        home = Path.home()
        return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and path != home else str(path)
    return ", ".join(Path(path).name or path for path in paths)


def _rows(setup: Setup, known: Known) -> list[_Row]:
    data = short_paths(setup.data)
    return [
        _Row("model", "model", setup.model or "none: Enter chooses one", known.model, not setup.model),
        _Row("data", "data", data or "none: Enter, or drop a file here", known.data, not data, known.data_is_wrong),
        *[_setting_row(setup, known, setting.name, setting.label) for setting in SETTINGS],
        _Row("skip_bad", "bad rows", "left out" if setup.skip_bad else "stop the training", "", not setup.skip_bad),
    ]


def _setting_row(setup: Setup, known: Known, name: str, label: str) -> _Row:
    given = setup.text(name)
    value, note = given or default_text(name), ""
    match name:
        case "name":
            value, note = given or known.name or "after the data", ""
        case "rank":
            note = f"scale {_ALPHA / int(value):g}" if setup.given.get("method", "lora") != "full" else "not used"
        case "epochs":
            by_steps = "steps" in setup.given
            value, note = given or ("by the steps" if by_steps else "by the data"), known.epochs
        case "steps":
            value, note = given or "by the epochs", "" if given else known.updates
        case "max_length":
            note = "tokens"
    return _Row(name, label, value, note, not given)
