"""Conversations on the disk: a tree of messages each. An edit or another answer is a branch; nothing is lost."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localllm.database import errors_for, open_database
from localllm.errors import ConversationError
from localllm.messages import Conversation, Message, Role, SearchHit, Status, snippet_around
from localllm.migrations import migrate
from localllm.owner import process_alive, this_process

__all__ = ["UNDO_SECONDS", "Conversation", "ConversationStore", "Message", "Role", "SearchHit", "Status"]

UNDO_SECONDS = 24 * 3600


class ConversationStore:
    """All conversations of one home. Every call is one short transaction; any thread may make it.

    Args:
        path: The database; made with mode 0600 when it is not there.
        clock: Seconds since the epoch.
        owner: Noted on messages while they stream; this process by default.
        alive: Whether an owner still runs.

    Raises:
        ConversationError: The database is damaged (it is kept), locked, or from a newer version.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        owner: str = "",
        alive: Callable[[str], bool] = process_alive,
    ) -> None:
        self.path = path
        self._clock = clock
        self._owner = owner or this_process()
        self._lock = threading.RLock()
        self._connection = open_database(path)
        try:
            with errors_for(path):
                migrate(self._connection, clock())
            self._cancel_orphans(alive)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the database. Calls after this fail."""
        with self._lock:
            self._connection.close()

    # ── conversations ──

    def create(self, title: str = "", model: str = "", system_prompt: str = "") -> Conversation:
        """Start a conversation without messages."""
        now = self._clock()
        with self._write() as connection:
            cursor = connection.execute(
                "INSERT INTO conversations (title, created, updated, model, system_prompt) VALUES (?, ?, ?, ?, ?)",
                (_storable(title), now, now, model, _storable(system_prompt)),
            )
            return self._conversation(int(cursor.lastrowid or 0))

    def get(self, conversation_id: int) -> Conversation:
        """The conversation of that id.

        Raises:
            ConversationError: There is none, or it has been deleted.
        """
        with self._read():
            return self._conversation(conversation_id)

    def list(self, limit: int = 200, offset: int = 0) -> tuple[Conversation, ...]:
        """Conversations, the one last written to first; deleted ones are left out."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT * FROM conversations WHERE deleted IS NULL ORDER BY updated DESC, id DESC LIMIT ? OFFSET ?",
                (limit, offset),
            )
            return tuple(Conversation.from_row(row) for row in rows)

    def search(self, text: str, limit: int = 200) -> tuple[SearchHit, ...]:
        """Conversations with ``text`` in their title or in any message of any branch, capitals ignored."""
        needle = text.casefold()
        hits: dict[int, SearchHit] = {}
        with self._read() as connection:
            # LIKE folds ASCII only; this is a scan either way, of text that one person typed and read.
            connection.create_function(
                "contains_folded", 2, lambda hay, want: want in hay.casefold(), deterministic=True
            )
            rows = connection.execute(
                "SELECT c.*, m.content FROM conversations c LEFT JOIN messages m ON m.conversation_id = c.id "
                "AND contains_folded(m.content, :needle) "
                "WHERE c.deleted IS NULL AND (m.id IS NOT NULL OR contains_folded(c.title, :needle)) "
                "ORDER BY c.updated DESC, c.id DESC, m.id DESC",
                {"needle": needle},
            )
            for row in rows:
                if row["id"] not in hits:
                    place = row["title"] if row["content"] is None else snippet_around(row["content"], needle)
                    hits[row["id"]] = SearchHit(Conversation.from_row(row), place)
                if len(hits) > limit:
                    break
        return tuple(hits.values())[:limit]

    def rename(self, conversation_id: int, title: str) -> None:
        """Give a conversation another title; it keeps its place in the list.

        Raises:
            ConversationError: There is no such conversation.
        """
        self._update_conversation(conversation_id, "title = ?", _storable(title))

    def set_model(self, conversation_id: int, model: str) -> None:
        """Let a conversation go on with another model.

        Raises:
            ConversationError: There is no such conversation.
        """
        self._update_conversation(conversation_id, "model = ?", model)

    def delete(self, conversation_id: int) -> None:
        """Hide a conversation; :meth:`restore` brings it back until :meth:`purge` removes it for good.

        Raises:
            ConversationError: There is no such conversation.
        """
        self._update_conversation(conversation_id, "deleted = ?", self._clock())

    def restore(self, conversation_id: int) -> Conversation:
        """Undo :meth:`delete`.

        Raises:
            ConversationError: It has been purged.
        """
        with self._write() as connection:
            connection.execute("UPDATE conversations SET deleted = NULL WHERE id = ?", (conversation_id,))
            return self._conversation(conversation_id)

    def purge(self, older_than: float = UNDO_SECONDS) -> int:
        """Remove for good what was deleted more than ``older_than`` seconds ago; return how many conversations."""
        with self._write() as connection:
            cursor = connection.execute("DELETE FROM conversations WHERE deleted <= ?", (self._clock() - older_than,))
            return cursor.rowcount

    # ── messages ──

    def append(
        self,
        conversation_id: int,
        parent_id: int | None,
        role: Role,
        content: str,
        *,
        status: Status = "done",
        model: str = "",
    ) -> Message:
        """Add a message after ``parent_id`` (None: a first one), and show its branch from now on.

        Raises:
            ConversationError: There is no such conversation, or the parent is not in it.
        """
        now = self._clock()
        with self._write() as connection:
            self._conversation(conversation_id)
            cursor = connection.execute(
                "INSERT INTO messages (conversation_id, parent_id, role, content, status, model, error, created, "
                "owner) VALUES (?, ?, ?, ?, ?, ?, '', ?, ?)",
                (conversation_id, parent_id, role, _storable(content), status, model, now, self._owner),
            )
            connection.execute(
                "UPDATE conversations SET active_leaf = ?, updated = ? WHERE id = ?",
                (cursor.lastrowid, now, conversation_id),
            )
            return self._message(int(cursor.lastrowid or 0))

    def update_text(self, message_id: int, content: str) -> None:
        """Save the text so far of a message that streams. One that has ended keeps its text."""
        with self._write() as connection:
            connection.execute(
                "UPDATE messages SET content = ? WHERE id = ? AND status = 'streaming'",
                (_storable(content), message_id),
            )

    def finish(
        self,
        message_id: int,
        status: Status,
        content: str,
        *,
        usage: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> Message:
        """End a message that streams, with its whole text. One that has ended already stays as it is.

        Raises:
            ConversationError: There is no such message.
        """
        with self._write() as connection:
            connection.execute(
                "UPDATE messages SET status = ?, content = ?, usage = ?, error = ? "
                "WHERE id = ? AND status = 'streaming'",
                (status, _storable(content), json.dumps(dict(usage)) if usage else None, _storable(error), message_id),
            )
            return self._message(message_id)

    def message(self, message_id: int) -> Message:
        """The message of that id.

        Raises:
            ConversationError: There is none.
        """
        with self._read():
            return self._message(message_id)

    def path_to(self, message_id: int) -> tuple[Message, ...]:
        """Messages from the first one to this one, it included.

        Raises:
            ConversationError: There is no such message.
        """
        with self._read() as connection:
            self._message(message_id)
            return _path(connection, message_id)

    def active_path(self, conversation_id: int) -> tuple[Message, ...]:
        """The branch that is shown, from the first message to the leaf.

        Raises:
            ConversationError: There is no such conversation.
        """
        with self._read() as connection:
            leaf = self._conversation(conversation_id).active_leaf
            return () if leaf is None else _path(connection, leaf)

    def siblings(self, message_id: int) -> tuple[Message, ...]:
        """Messages with the same parent, oldest first, this one included.

        Raises:
            ConversationError: There is no such message.
        """
        with self._read() as connection:
            message = self._message(message_id)
            rows = connection.execute(
                "SELECT * FROM messages WHERE conversation_id = ? AND parent_id IS ? ORDER BY id",
                (message.conversation_id, message.parent_id),
            )
            return tuple(Message.from_row(row) for row in rows)

    def branch_positions(self, conversation_id: int) -> dict[int, tuple[int, int]]:
        """For every message of a conversation: which of its siblings it is, counted from 1, and how many there are."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT id, row_number() OVER siblings, count(*) OVER (PARTITION BY parent_id) FROM messages "
                "WHERE conversation_id = ? WINDOW siblings AS (PARTITION BY parent_id ORDER BY id)",
                (conversation_id,),
            )
            return {message_id: (position, count) for message_id, position, count in rows}

    def set_active(self, message_id: int) -> Message:
        """Show the branch through this message, down to the newest leaf below it; return that leaf.

        Raises:
            ConversationError: There is no such message.
        """
        with self._write() as connection:
            message = self._message(message_id)
            # Ids grow with time and along every branch: the largest one below is a leaf, and the newest.
            (leaf,) = connection.execute(
                "WITH RECURSIVE below (id) AS (VALUES (?) UNION ALL SELECT m.id FROM messages m "
                "JOIN below b ON m.parent_id = b.id AND m.conversation_id = ?) SELECT max(id) FROM below",
                (message_id, message.conversation_id),
            ).fetchone()
            connection.execute("UPDATE conversations SET active_leaf = ? WHERE id = ?", (leaf, message.conversation_id))
            return self._message(leaf)

    # ── inside ──

    def _cancel_orphans(self, alive: Callable[[str], bool]) -> None:
        """Mark as cancelled what a process was writing when it died; what a living one writes is left alone."""
        with self._write() as connection:
            rows = connection.execute("SELECT DISTINCT owner FROM messages WHERE status = 'streaming'").fetchall()
            for (owner,) in rows:
                if not alive(owner):
                    connection.execute(
                        "UPDATE messages SET status = 'cancelled' WHERE status = 'streaming' AND owner = ?", (owner,)
                    )

    def _update_conversation(self, conversation_id: int, assignment: str, value: str | float) -> None:
        with self._write() as connection:
            cursor = connection.execute(
                f"UPDATE conversations SET {assignment} WHERE id = ? AND deleted IS NULL",  # noqa: S608  a constant of ours
                (value, conversation_id),
            )
            if not cursor.rowcount:
                raise _no_conversation(conversation_id)

    def _conversation(self, conversation_id: int) -> Conversation:
        row = self._connection.execute(
            "SELECT * FROM conversations WHERE id = ? AND deleted IS NULL", (conversation_id,)
        ).fetchone()
        if row is None:
            raise _no_conversation(conversation_id)
        return Conversation.from_row(row)

    def _message(self, message_id: int) -> Message:
        row = self._connection.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone()
        if row is None:
            raise ConversationError(f"Message {message_id} is not there (any more).")
        return Message.from_row(row)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        # One snapshot for the statements of one call, so that another process cannot write between them.
        with self._lock, errors_for(self.path):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock, errors_for(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have rolled back already
                    self._connection.execute("ROLLBACK")
                raise


def _storable(text: str) -> str:
    # Half a surrogate pair (from a file name, or broken JSON) is no Unicode text; SQLite refuses it.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _no_conversation(conversation_id: int) -> ConversationError:
    return ConversationError(f"Conversation {conversation_id} is not there (any more).")


def _path(connection: sqlite3.Connection, leaf: int) -> tuple[Message, ...]:
    rows = connection.execute(
        "WITH RECURSIVE up (id, parent_id) AS (SELECT id, parent_id FROM messages WHERE id = ? "
        "UNION ALL SELECT m.id, m.parent_id FROM messages m JOIN up ON m.id = up.parent_id) "
        "SELECT * FROM messages WHERE id IN (SELECT id FROM up) ORDER BY id",  # ids grow along every branch
        (leaf,),
    )
    return tuple(Message.from_row(row) for row in rows)
