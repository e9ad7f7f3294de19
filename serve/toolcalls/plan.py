"""What a request asks of tools, carried out for the model at hand; every API of the server shares it."""

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace

from serve.engine.constraint_types import Constraint
from serve.engine.types import GenerateRequest
from serve.toolcalls.grammar import call_grammar, call_prefix
from serve.toolcalls.parser import ToolCallParser
from serve.toolcalls.prompts import chat_for
from serve.toolcalls.types import Tool, ToolFormat

# Marks of the formats that some vocabularies hold as special tokens.
_MARKS: Mapping[ToolFormat, tuple[str, ...]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "mistral_args": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "plain": (),
}


@dataclass(frozen=True)
class ToolPlan:
    """Tools of one request.

    Attributes:
        tools: That may be called; none where only the messages tell of calls.
        force: One of the tools must be called.
        parallel: Several calls in one answer are wanted.
    """

    tools: tuple[Tool, ...] = ()
    force: bool = False
    parallel: bool = True

    def request(self, request: GenerateRequest, tool_format: ToolFormat) -> GenerateRequest:
        """``request``, whose messages are in OpenAI's shape, for a model of this format."""
        assert request.messages is not None, "tools belong to chats"
        messages = tuple(chat_for(tool_format, request.messages, self.tools))
        if not self.tools:
            return replace(request, messages=messages)
        listed = {} if tool_format == "plain" else {"tools": [tool.as_dict() for tool in self.tools]}
        request = replace(
            request,
            messages=messages,
            template_args={**request.template_args, **listed},
            show_special=_MARKS[tool_format],
        )
        if not self.force:
            return request
        grammar = call_grammar(tool_format, self.tools, parallel=self.parallel)
        prefix = call_prefix(tool_format, self.tools)
        return replace(request, constraint=Constraint("tool_calls", grammar), answer_prefix=prefix)

    def parser(self, tool_format: ToolFormat) -> ToolCallParser | None:
        """What reads the answer; None where nothing can be called."""
        if not self.tools:
            return None
        names = [tool.name for tool in self.tools]
        parser = ToolCallParser(tool_format, names, None if self.parallel else 1)
        if self.force:
            parser.begin(call_prefix(tool_format, self.tools))
        return parser


def new_call_id(tool_format: ToolFormat) -> str:
    """An id for a call; Mistral's templates take nine letters and digits only."""
    if tool_format in ("mistral", "mistral_args"):
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"
