"""Which format a model's calls have, read from its chat template."""

from serve.toolcalls.types import ToolFormat


def tool_format(template: str | None) -> ToolFormat:
    """How a model with this chat template writes calls.

    Args:
        template: The Jinja source; None for a model without one.
    """
    if template is None or "tools" not in template:
        return "plain"
    if "[TOOL_CALLS]" in template:
        return "mistral_args" if "[ARGS]" in template else "mistral"
    if "<tool_call>" in template:
        # Some (Qwen3-Coder) put XML between the same marks.
        return "plain" if "<function=" in template else "hermes"
    if "<|python_tag|>" in template or ('"parameters"' in template and "<|start_header_id|>" in template):
        return "llama3"
    return "plain"
