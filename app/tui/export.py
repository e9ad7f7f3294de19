"""Files that a person asks for: a conversation as markdown, a picture of the screen."""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from app.tui.markdown import harmless
from localllm.conversations import Conversation, Message
from localllm.files import write_atomic
from localllm.paths import DIR_MODE, Home
from localllm.sanitize import one_line


def conversation_markdown(conversation: Conversation, path: Sequence[Message]) -> str:
    """The branch that is shown, as markdown: a heading for the title and one for each message."""
    title = one_line(conversation.title, 200) or "Conversation"
    begun = datetime.fromtimestamp(conversation.created).strftime("%Y-%m-%d %H:%M")
    parts = [f"# {title}", f"*{begun}*"]
    if conversation.system_prompt:
        parts += ["## System", harmless(conversation.system_prompt).strip()]
    for message in path:
        who = "You" if message.role == "user" else one_line(message.model, 100) or "Assistant"
        parts += [f"## {who}", harmless(message.content).strip() or "*(empty)*"]
        if message.status in {"cancelled", "error"}:
            parts.append(f"*({'stopped' if message.status == 'cancelled' else 'broke off'})*")
    return "\n\n".join(parts) + "\n"


def export_conversation(home: Home, conversation: Conversation, path: Sequence[Message]) -> Path:
    """Write the branch that is shown into the exports of this home; return the file. An older export is replaced.

    Raises:
        DiskFullError: There is no room; an older export is as it was.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", conversation.title.lower()).strip("-")[:40].rstrip("-") or "conversation"
    home.exports.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
    file = home.exports / f"{slug}-{conversation.id}.md"
    write_atomic(file, conversation_markdown(conversation, path))
    return file


def export_picture(home: Home, svg: str) -> Path:
    """Write a picture of the screen into the exports of this home; return the file.

    Raises:
        DiskFullError: There is no room.
    """
    home.exports.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
    file = home.exports / f"localllm-{datetime.now():%Y-%m-%d-%H%M%S}.svg"
    write_atomic(file, without_remote_fonts(svg))
    return file


def without_remote_fonts(svg: str) -> str:
    """``svg`` without the fonts that a viewer would fetch from the network; any monospaced one does."""
    return re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg)
