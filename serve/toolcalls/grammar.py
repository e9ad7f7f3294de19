"""Grammars that make a model call a tool, with arguments that follow its schema."""

import json
from collections.abc import Sequence
from typing import Any

from serve.engine.constraint_types import JSON_SPACE
from serve.toolcalls.types import Tool, ToolFormat

# Small models, once they call, go on calling; no answer needs more at once.
MAX_CALLS = 16
# With one of these the properties are named in another place.
_ELSEWHERE = frozenset({"$ref", "allOf", "anyOf", "oneOf"})


def call_prefix(tool_format: ToolFormat, tools: Sequence[Tool]) -> str:
    """What a forced answer begins with: marks that may be special tokens, which no grammar can name."""
    match tool_format:
        case "hermes":
            return "<tool_call>\n"
        case "mistral":
            return "[TOOL_CALLS]"
        case "mistral_args":
            return f"[TOOL_CALLS]{tools[0].name}[ARGS]" if len(tools) == 1 else "[TOOL_CALLS]"
        case "llama3" | "plain":
            return ""


def call_grammar(tool_format: ToolFormat, tools: Sequence[Tool], *, parallel: bool) -> str:
    """A Lark grammar of what follows :func:`call_prefix`.

    Args:
        tool_format: How the model writes calls.
        tools: One of them is called; at least one.
        parallel: Several calls are allowed, where the format has room for them.
    """
    key = "parameters" if tool_format in ("llama3", "plain") else "arguments"
    rules: list[str] = []
    for index, tool in enumerate(tools):
        rules.append(f"args_{index}: %json {json.dumps(_arguments_schema(tool))}")
        if tool_format == "mistral_args":
            head = _literal(f"{tool.name}[ARGS]") if len(tools) > 1 else ""
            rules.append(f"call_{index}: {head} args_{index}")
        else:
            head = _literal(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
            rules.append(f"call_{index}: {head} args_{index} {_literal('}')}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))
    return "\n".join([_start(tool_format, parallel=parallel), *rules])


def _start(tool_format: ToolFormat, *, parallel: bool) -> str:
    def calls(between: str) -> str:
        return f"call ({_literal(between)} call){{0,{MAX_CALLS - 1}}}" if parallel else "call"

    match tool_format:
        case "hermes":
            close = "\n</tool_call>"
            between = f"{close}\n<tool_call>\n"
            return f"start: {calls(between)} {_literal(close)}"
        case "mistral":
            return f'start: " "? "[" {calls(", ")} "]"'
        case "plain":
            return "start: " + calls("\n")
        case "llama3" | "mistral_args":  # their templates have one call in a message
            return "start: call"


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    """The tool's schema as the grammar takes it: an object, without arguments that it does not name."""
    schema: dict[str, Any] = {"type": "object", **tool.parameters}
    if not schema.keys() & _ELSEWHERE:
        schema = {"properties": {}, "additionalProperties": False, **schema}
    # As for any JSON schema in :mod:`serve.engine.constraints`.
    schema["x-guidance"] = {"whitespace_pattern": JSON_SPACE, "coerce_one_of": True, "lenient": not tool.strict}
    return schema


def _literal(text: str) -> str:
    return json.dumps(text)
