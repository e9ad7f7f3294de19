"""Textual's Markdown over the harmless parser."""

from typing import TYPE_CHECKING

from textual.widgets import Markdown

from app.tui.markdown import harmless, safe_parser

if TYPE_CHECKING:
    from textual.widgets.markdown import MarkdownStream


class SafeMarkdown(Markdown):
    """Shows a model's markdown. What it is given passes through :func:`~app.tui.markdown.harmless` here.

    Streaming is :meth:`write` again and again, then :meth:`finish` once.
    """

    def __init__(self, text: str = "", *, classes: str | None = None) -> None:
        super().__init__(harmless(text), classes=classes, parser_factory=safe_parser, open_links=False)
        self._stream: MarkdownStream | None = None

    async def write(self, text: str) -> None:
        """Show more of an answer; drawing is put together when text comes faster than it can be drawn."""
        if self._stream is None:
            self._stream = self.get_stream(self)
        await self._stream.write(harmless(text))

    async def finish(self, text: str) -> None:
        """Show the whole answer afresh: pieces of a table or a fence are parsed right only as a whole."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        await self.update(harmless(text))
