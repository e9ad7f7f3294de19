"""The database's schema, as ordered steps that never change once they are released.

To change the schema, add a function and its line at the end of :data:`MIGRATIONS`; never edit an older one.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localllm.errors import ConversationError


@dataclass(frozen=True)
class Migration:
    """One step. ``version`` counts from 1 without gaps; ``apply`` runs inside a transaction."""

    version: int
    name: str
    apply: Callable[[sqlite3.Connection], None]


def _conversations_and_messages(connection: sqlite3.Connection) -> None:
    # The pairs (id, conversation_id) let the database itself refuse a parent or a leaf from another conversation.
    connection.execute(
        """
        CREATE TABLE conversations (
            id            INTEGER PRIMARY KEY AUTOINCREMENT,
            title         TEXT NOT NULL,
            created       REAL NOT NULL,
            updated       REAL NOT NULL,
            model         TEXT NOT NULL,
            system_prompt TEXT NOT NULL,
            active_leaf   INTEGER,
            deleted       REAL,
            FOREIGN KEY (active_leaf, id) REFERENCES messages (id, conversation_id) DEFERRABLE INITIALLY DEFERRED
        )
        """
    )
    connection.execute(
        """
        CREATE TABLE messages (
            id              INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            parent_id       INTEGER,
            role            TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
            content         TEXT NOT NULL,
            status          TEXT NOT NULL CHECK (status IN ('streaming', 'done', 'cancelled', 'error')),
            model           TEXT NOT NULL,
            usage           TEXT,
            error           TEXT NOT NULL,
            created         REAL NOT NULL,
            owner           TEXT NOT NULL,
            UNIQUE (id, conversation_id),
            FOREIGN KEY (parent_id, conversation_id) REFERENCES messages (id, conversation_id) ON DELETE CASCADE
        )
        """
    )
    connection.execute("CREATE INDEX messages_by_parent ON messages (conversation_id, parent_id, id)")
    connection.execute("CREATE INDEX messages_streaming ON messages (status) WHERE status = 'streaming'")
    connection.execute("CREATE INDEX conversations_by_updated ON conversations (updated DESC, id DESC)")


MIGRATIONS: tuple[Migration, ...] = (Migration(1, "conversations and messages", _conversations_and_messages),)


def migrate(connection: sqlite3.Connection, now: float, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the database up to date, all steps or none. Safe when two processes do it at once.

    Args:
        connection: In autocommit mode, with a busy timeout.
        now: Seconds since the epoch, noted beside each step.
        migrations: The steps in order.

    Raises:
        ConversationError: The database was written by a newer version of this program.
        sqlite3.Error: The file is damaged or locked.
    """
    connection.execute("BEGIN IMMEDIATE")  # the second process waits here and then finds everything done
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied REAL NOT NULL)"
        )
        applied = _applied_version(connection, newest=migrations[-1].version if migrations else 0)
        for migration in migrations:
            if migration.version > applied:
                migration.apply(connection)
                connection.execute(
                    "INSERT INTO schema_migrations (version, name, applied) VALUES (?, ?, ?)",
                    (migration.version, migration.name, now),
                )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _applied_version(connection: sqlite3.Connection, newest: int) -> int:
    (applied,) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    if applied > newest:
        raise ConversationError(
            f"The database is of version {applied}, but this program knows versions up to {newest} only.",
            "It was written by a newer localllm: update this one, or set LOCALLLM_HOME to another directory.",
        )
    return int(applied)
