"""Handlers whose errors are told to the person and end nothing."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from localllm.errors import LocalLLMError


class Teller(Protocol):
    """A screen that can show a notice."""

    def say(self, text: str, severity: Literal["information", "warning", "error"] = "information") -> None:
        """Show it."""


_Screen = TypeVar("_Screen", bound=Teller)
_Arguments = ParamSpec("_Arguments")


def reported(
    handler: Callable[Concatenate[_Screen, _Arguments], Awaitable[None]],
) -> Callable[Concatenate[_Screen, _Arguments], Coroutine[Any, Any, None]]:
    """Tell of a :class:`LocalLLMError` in a notice: another window may have deleted what is shown, the disk be full.

    Without it Textual ends the app, as it should for a bug.
    """

    @wraps(handler)
    async def guarded(self: _Screen, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        try:
            await handler(self, *args, **kwargs)
        except LocalLLMError as error:
            self.say(str(error), "error")

    return guarded
