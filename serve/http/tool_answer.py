"""One answer that may hold tool calls, for the APIs that have one choice in an answer."""

from serve.engine.types import GenerateRequest
from serve.toolcalls.plan import ToolPlan
from serve.toolcalls.types import Part, TextPart, ToolFormat


class ToolAnswer:
    """What an engine is asked, and how its text is to be read.

    Args:
        plan: What is asked of tools; None for nothing.
        request: As the engine takes it but for tools, with messages in OpenAI's shape.
        tool_format: How the model writes calls.

    Attributes:
        request: As the engine takes it.
    """

    def __init__(self, plan: ToolPlan | None, request: GenerateRequest, tool_format: ToolFormat) -> None:
        self.request = request if plan is None else plan.request(request, tool_format)
        self._parser = None if plan is None else plan.parser(tool_format)

    def parts(self, text: str) -> list[Part]:
        """What more text adds to the answer."""
        if self._parser is None:
            return [TextPart(text)] if text else []
        return self._parser.feed(text)

    def last_parts(self) -> list[Part]:
        """What was held back until the end."""
        return [] if self._parser is None else self._parser.finish()

    @property
    def called(self) -> bool:
        """It holds a call."""
        return self._parser is not None and self._parser.n_calls > 0
