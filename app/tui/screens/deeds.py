"""A screen whose keys touch the disk: in threads, and their errors are told."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

from textual.screen import ModalScreen, Screen

from app.tui.markdown import harmless
from localllm.errors import LocalLLMError

Answer = TypeVar("Answer")


class DeedsScreen(Screen[str | None]):
    """Does things in threads, and tells of what went wrong."""

    def say(self, text: str, severity: Literal["information", "warning", "error"] = "information") -> None:
        """A notice in a corner, for some seconds."""
        self.notify(harmless(text), severity=severity, markup=False, timeout=15 if severity == "error" else 5)

    def in_thread(self, deed: Callable[[], None]) -> None:
        """Do what touches the disk; tell of its errors."""
        self.run_worker(partial(self._do, deed), thread=True, group="deeds")

    def ask(self, dialog: ModalScreen[Answer], answered: Callable[[Answer | None], None]) -> None:
        """Open a dialog when a thread has read what it shows; the person may have left meanwhile."""
        if self.is_active:
            self.app.push_screen(dialog, answered)

    def answer(self, name: str) -> None:
        """Close the screen with an answer that a thread has found."""
        if self.is_active:
            self.dismiss(name)

    def failed(self, text: str) -> None:
        """Tell what went wrong with a deed."""
        self.say(text, "error")

    def _do(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except LocalLLMError as error:
            self.app.call_from_thread(self.failed, str(error))
