"""What a conversation is made of."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Status = Literal["streaming", "done", "cancelled", "error"]

_SNIPPET = 80


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        id: Never used again, even after a purge.
        title: One line; empty until something names it.
        created, updated: Seconds since the epoch.
        model: The model that it talks to, as a name in the store.
        system_prompt: Put before its messages; may be empty.
        active_leaf: The last message of the branch that is shown; None while there are no messages.
    """

    id: int
    title: str
    created: float
    updated: float
    model: str
    system_prompt: str
    active_leaf: int | None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> "Conversation":
        """Read a row of ``conversations``."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Message:
    """One message: a node of the tree.

    Attributes:
        parent_id: The message it follows; None for a first one.
        content: As it came, with control characters and all: to be made printable where it is shown.
        status: ``streaming`` while a process writes it; ``cancelled`` and ``error`` keep the text so far.
        model: What wrote it; empty for a person's message.
        usage: Counts and times of the answer; empty when unknown.
        error: What went wrong, when ``status`` is ``error``.
        created: Seconds since the epoch.
    """

    id: int
    conversation_id: int
    parent_id: int | None
    role: Role
    content: str
    status: Status
    model: str
    usage: Mapping[str, Any]
    error: str
    created: float

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> "Message":
        """Read a row of ``messages``."""
        fields = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "usage": json.loads(row["usage"]) if row["usage"] else {}})


@dataclass(frozen=True)
class SearchHit:
    """A conversation that holds the text; ``snippet`` is the place in its newest such message, or its title."""

    conversation: Conversation
    snippet: str


def snippet_around(content: str, needle: str) -> str:
    """Some eighty characters of ``content`` around the first ``needle`` (which is case-folded)."""
    start = max(0, content.casefold().find(needle) - _SNIPPET // 3)
    return ("…" if start else "") + content[start : start + _SNIPPET].strip()
