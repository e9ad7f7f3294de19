"""Which format a model's calls have, read from its chat template."""

import re

from serve.toolcalls.types import ToolFormat

_JSON_CALL = re.compile(r'\\?"arguments\\?":')


def tool_format(template: str | None) -> ToolFormat:
    """How a model with this chat template writes calls.

    Args:
        template: The Jinja source; None for a model without one.
    """
    if template is None or "tools" not in template:
        return "plain"
    if "[TOOL_CALLS]" in template:
        return "mistral_args" if "[ARGS]" in template else "mistral"
    if "<function=" in template:
        return "plain"  # XML, between Hermes's marks (Qwen3-Coder) or Llama's (Functionary)
    if "<tool_call>" in template:
        # Others put something else between the same marks (GLM), and then no JSON is shown to the model.
        return "hermes" if _JSON_CALL.search(template) else "plain"
    if "<|python_tag|>" in template or ('"parameters"' in template and "<|start_header_id|>" in template):
        return "llama3"
    return "plain"
