"""Tools, and the parts of an answer that may call them. Plain data, nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal

ToolFormat = Literal["hermes", "llama3", "mistral", "mistral_args", "plain"]
"""How a model writes its calls.

``hermes``
    ``<tool_call>{"name": …, "arguments": …}</tool_call>``: Hermes, Qwen 2.5 and 3, Granite 4.
``llama3``
    The answer is ``{"name": …, "parameters": …}``, perhaps after ``<|python_tag|>``.
``mistral``
    ``[TOOL_CALLS][{"name": …, "arguments": …}, …]``.
``mistral_args``
    ``[TOOL_CALLS]name[ARGS]{…}``: Mistral's tokenizers from version 11 on.
``plain``
    The template knows nothing of tools (Gemma), or not in a way we know: our own words tell the model to answer with
    ``{"name": …, "parameters": …}``; JSON or Python calls in a fence are read too.
"""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: Letters, digits, ``_`` and ``-``.
        description: What it does, in words for the model.
        parameters: JSON schema of its arguments, an object.
        strict: Refuse a schema that cannot be enforced to the letter.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False

    def as_dict(self) -> dict[str, Any]:
        """In the shape that chat templates expect, OpenAI's."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class TextPart:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins.

    Attributes:
        index: 0 for the answer's first call.
        name: The tool's.
    """

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments: a piece of JSON text."""

    index: int
    text: str


Part = TextPart | CallStart | CallArguments
