import sqlite3
import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from localllm.conversations import UNDO_SECONDS, ConversationStore
from localllm.errors import ConversationError
from localllm.migrations import MIGRATIONS, Migration, migrate
from localllm.owner import process_alive, this_process


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "localllm.db"


@pytest.fixture
def store(path):
    store = ConversationStore(path, clock=Clock())
    yield store
    store.close()


def reopened(store, **kwargs):
    store.close()
    return ConversationStore(store.path, **kwargs)


# ── the file ──


def test_the_file_and_its_log_are_private(store):
    store.create("secret")
    for file in store.path.parent.glob("localllm.db*"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_looser_mode_is_tightened(path):
    path.touch(mode=0o644)
    ConversationStore(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_database_is_kept(path):
    path.write_bytes(b"these are not the bytes" * 100)
    before = path.read_bytes()
    with pytest.raises(ConversationError, match="damaged") as raised:
        ConversationStore(path)
    assert "kept as it is" in raised.value.hint
    assert path.read_bytes() == before


def test_damage_in_the_middle_is_reported(store):
    conversation = store.create("t")
    for index in range(200):
        store.append(conversation.id, None, "user", f"message {index} " * 20)
    store.close()
    raw = bytearray(store.path.read_bytes())
    raw[4096 * 3 :] = b"\xff" * (len(raw) - 4096 * 3)
    store.path.write_bytes(raw)

    def use():
        damaged = ConversationStore(store.path)
        try:
            damaged.search("message")
        finally:
            damaged.close()

    with pytest.raises(ConversationError, match="damaged"):
        use()  # when SQLite notices depends on the page


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ConversationError, match="cannot be opened"):
        ConversationStore(tmp_path / "absent" / "localllm.db")


def test_a_locked_database_is_reported(store, path):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._connection.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(ConversationError, match="held by another"):
        store.create("t")
    other.execute("ROLLBACK")
    other.close()
    store.create("t")


# ── migrations ──


def test_migrations_count_from_one_without_gaps():
    assert [migration.version for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_the_applied_steps_are_noted_once(store):
    store = reopened(store)
    rows = store._connection.execute("SELECT version, name FROM schema_migrations").fetchall()
    assert [tuple(row) for row in rows] == [(migration.version, migration.name) for migration in MIGRATIONS]
    store.close()


def test_the_first_step_never_changes(store):
    # Released: a change of the schema is a new migration. If this fails, undo your edit of the old one.
    rows = store._connection.execute(
        "SELECT name FROM pragma_table_info('messages') UNION ALL SELECT name FROM pragma_table_info('conversations')"
    ).fetchall()
    assert " ".join(row[0] for row in rows) == (
        "id conversation_id parent_id role content status model usage error created owner "
        "id title created updated model system_prompt active_leaf deleted"
    )


def test_a_database_from_a_newer_version_is_refused_and_kept(store):
    store._connection.execute("INSERT INTO schema_migrations VALUES (999, 'from the future', 0)")
    with pytest.raises(ConversationError, match="version 999"):
        reopened(store)
    assert store.path.exists()


def test_a_step_that_fails_leaves_nothing(store):
    def broken(connection):
        connection.execute("CREATE TABLE half (id INTEGER)")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        migrate(store._connection, 0, [*MIGRATIONS, Migration(len(MIGRATIONS) + 1, "broken", broken)])
    names = {row[0] for row in store._connection.execute("SELECT name FROM sqlite_master")}
    assert "half" not in names
    assert store._connection.execute("SELECT max(version) FROM schema_migrations").fetchone()[0] == len(MIGRATIONS)


def test_many_open_a_new_file_at_once(path):
    errors = []
    barrier = threading.Barrier(8)

    def open_and_write():
        try:
            barrier.wait()
            store = ConversationStore(path)
            store.create("t")
            store.close()
        except (ConversationError, sqlite3.Error) as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = ConversationStore(path)
    assert len(store.list()) == 8
    store.close()


# ── conversations ──


def test_list_shows_the_last_written_first(store):
    first, second = store.create("first"), store.create("second")
    assert [c.title for c in store.list()] == ["second", "first"]
    store.append(first.id, None, "user", "hello")
    assert [c.title for c in store.list()] == ["first", "second"]
    assert [c.id for c in store.list(limit=1, offset=1)] == [second.id]


def test_rename_and_model_keep_the_place(store):
    first = store.create("first")
    store.create("second")
    store.rename(first.id, "renamed")
    store.set_model(first.id, "m:q8")
    assert [(c.title, c.model) for c in store.list()] == [("second", ""), ("renamed", "m:q8")]


def test_delete_hides_and_restore_brings_back(store):
    conversation = store.create("t")
    message = store.append(conversation.id, None, "user", "hello")
    store.delete(conversation.id)
    assert store.list() == ()
    assert store.search("hello") == ()
    with pytest.raises(ConversationError):
        store.get(conversation.id)
    with pytest.raises(ConversationError):
        store.append(conversation.id, message.id, "user", "more")
    assert store.restore(conversation.id).active_leaf == message.id
    assert [c.id for c in store.list()] == [conversation.id]


def test_purge_removes_only_what_was_deleted_long_ago(path):
    clock = Clock()
    store = ConversationStore(path, clock=clock)
    old, new, kept = store.create("old"), store.create("new"), store.create("kept")
    message = store.append(old.id, None, "user", "needle-in-the-file " * 10)
    store.append(old.id, message.id, "assistant", "yes")
    store.delete(old.id)
    clock.now += UNDO_SECONDS
    store.delete(new.id)
    assert store.purge() == 1
    with pytest.raises(ConversationError):
        store.restore(old.id)
    with pytest.raises(ConversationError):
        store.message(message.id)
    store.restore(new.id)
    assert {c.id for c in store.list()} == {new.id, kept.id}
    store.close()
    assert b"needle-in-the-file" not in path.read_bytes()  # overwritten, not only unlinked


def test_a_missing_conversation_is_an_error(store):
    for call in (
        lambda: store.get(9),
        lambda: store.rename(9, "x"),
        lambda: store.delete(9),
        lambda: store.restore(9),
        lambda: store.append(9, None, "user", "x"),
        lambda: store.active_path(9),
        lambda: store.message(9),
        lambda: store.path_to(9),
        lambda: store.siblings(9),
        lambda: store.set_active(9),
        lambda: store.finish(9, "done", ""),
    ):
        with pytest.raises(ConversationError, match="not there"):
            call()


def test_search_ignores_capitals_beyond_ascii_and_takes_wildcards_as_text(store):
    one, two = store.create("Grüße"), store.create("other")
    store.append(one.id, None, "user", "100% sure")
    store.append(two.id, None, "user", "a long way before the ÄPFEL are ripe, and something after it")
    store.append(two.id, None, "user", "äpfel again")
    assert [hit.conversation.id for hit in store.search("GRÜSSE")] == [one.id]
    assert [hit.snippet for hit in store.search("äpfel")] == ["äpfel again"]
    assert [hit.conversation.id for hit in store.search("%")] == [one.id]
    assert store.search("_") == ()
    assert len(store.search("", limit=1)) == 1


# ── the tree ──


def test_edits_and_new_answers_are_branches(store):
    conversation = store.create("t")
    ask = store.append(conversation.id, None, "user", "ask")
    one = store.append(conversation.id, ask.id, "assistant", "one")
    follow = store.append(conversation.id, one.id, "user", "follow")
    two = store.append(conversation.id, ask.id, "assistant", "two")
    edited = store.append(conversation.id, None, "user", "edited")
    assert store.active_path(conversation.id) == (edited,)
    assert store.siblings(one.id) == (one, two)
    assert store.siblings(ask.id) == (ask, edited)
    assert store.set_active(one.id) == follow
    assert [m.content for m in store.active_path(conversation.id)] == ["ask", "one", "follow"]
    assert [m.content for m in store.path_to(two.id)] == ["ask", "two"]
    assert store.set_active(ask.id) == two  # the newest below


def test_a_parent_must_be_in_the_same_conversation(store):
    one, two = store.create("one"), store.create("two")
    message = store.append(one.id, None, "user", "hello")
    with pytest.raises(ConversationError, match="not there"):
        store.append(two.id, message.id, "user", "stray")
    assert store.active_path(two.id) == ()


def test_a_message_ends_once(store):
    conversation = store.create("t")
    message = store.append(conversation.id, None, "assistant", "", status="streaming", model="m")
    store.update_text(message.id, "par")
    assert store.message(message.id).content == "par"
    ended = store.finish(message.id, "done", "partial", usage={"n_prompt": 3})
    assert (ended.status, ended.content, ended.usage) == ("done", "partial", {"n_prompt": 3})
    store.update_text(message.id, "late")
    assert store.finish(message.id, "cancelled", "late") == ended


def test_half_a_surrogate_pair_is_replaced(store):
    conversation = store.create("a\ud800")
    assert store.get(conversation.id).title == "a\ufffd"
    message = store.append(conversation.id, None, "assistant", "b\udfff", status="streaming")
    assert message.content == "b\ufffd"
    assert store.finish(message.id, "done", "c\ud83d").content == "c\ufffd"


def test_text_comes_back_as_it_was(store):
    conversation = store.create("t")
    text = "\x1b[31m\x00 'quoted'; -- \U0001f600 \ud7ff\nline"
    assert store.message(store.append(conversation.id, None, "user", text).id).content == text


def test_branch_positions(store):
    conversation = store.create("t")
    ask = store.append(conversation.id, None, "user", "ask")
    answers = [store.append(conversation.id, ask.id, "assistant", str(index)) for index in range(3)]
    assert store.branch_positions(conversation.id) == {
        ask.id: (1, 1),
        **{answer.id: (index + 1, 3) for index, answer in enumerate(answers)},
    }


# ── two at once ──


def test_what_a_dead_process_left_becomes_cancelled(store):
    conversation = store.create("t")
    store.close()
    crashed = ConversationStore(store.path, owner="dead")
    message = crashed.append(conversation.id, None, "assistant", "", status="streaming")
    crashed.update_text(message.id, "partial")
    crashed.close()
    after = ConversationStore(store.path, alive=lambda owner: owner != "dead")
    assert (after.message(message.id).status, after.message(message.id).content) == ("cancelled", "partial")
    after.close()


def test_what_a_living_process_writes_is_left_alone(store):
    conversation = store.create("t")
    message = store.append(conversation.id, None, "assistant", "", status="streaming")
    other = ConversationStore(store.path)
    assert other.message(message.id).status == "streaming"
    other.close()


def test_owners():
    pid, _, began = this_process().partition(":")
    assert process_alive(this_process())
    assert not process_alive(f"{pid}:{float(began) - 100:.0f}")  # the id was given to another process
    assert not process_alive("999999999:1")
    assert not process_alive("")


def test_two_stores_write_the_same_conversation(store):
    conversation = store.create("t")
    other = ConversationStore(store.path)

    def write(target):
        for index in range(30):
            target.append(conversation.id, None, "user", str(index))

    threads = [threading.Thread(target=write, args=(target,)) for target in (store, other, store)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.siblings(store.active_path(conversation.id)[0].id)) == 90
    other.close()


# ── any sequence of operations ──


class Tree(RuleBasedStateMachine):
    """The store against a plain model of it: dictionaries of parents and texts."""

    @initialize(directory=st.uuids())
    def open(self, directory):
        import tempfile
        from pathlib import Path

        self.directory = tempfile.TemporaryDirectory()
        self.store = ConversationStore(Path(self.directory.name) / "c.db")
        self.messages = {}
        self.leaf = {}
        self.deleted = set()

    def teardown(self):
        self.store.close()
        self.directory.cleanup()

    def live(self):
        return [c for c in self.leaf if c not in self.deleted]

    @rule()
    def create(self):
        self.leaf[self.store.create("t").id] = None

    @precondition(lambda self: self.live())
    @rule(data=st.data(), role=st.sampled_from(["user", "assistant"]), text=st.text(st.characters(codec="utf-8")))
    def append(self, data, role, text):
        conversation = data.draw(st.sampled_from(self.live()))
        parents = [None, *(m for m, (c, _, _) in self.messages.items() if c == conversation)]
        parent = data.draw(st.sampled_from(parents))
        message = self.store.append(conversation, parent, role, text)
        self.messages[message.id] = (conversation, parent, text)
        self.leaf[conversation] = message.id

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def switch(self, data):
        message = data.draw(st.sampled_from(sorted(self.messages)))
        leaf = self.store.set_active(message)
        assert message in [m.id for m in self.store.path_to(leaf.id)]
        self.leaf[self.messages[message][0]] = leaf.id

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def delete(self, data):
        conversation = data.draw(st.sampled_from(self.live()))
        self.store.delete(conversation)
        self.deleted.add(conversation)

    @precondition(lambda self: self.deleted)
    @rule(data=st.data())
    def restore(self, data):
        conversation = data.draw(st.sampled_from(sorted(self.deleted)))
        self.store.restore(conversation)
        self.deleted.remove(conversation)

    @rule()
    def purge(self):
        assert self.store.purge(older_than=-1) == len(self.deleted)
        self.messages = {m: v for m, v in self.messages.items() if v[0] not in self.deleted}
        self.leaf = {c: leaf for c, leaf in self.leaf.items() if c not in self.deleted}
        self.deleted.clear()

    @rule()
    def reopen(self):
        self.store.close()
        self.store = ConversationStore(self.store.path)

    @invariant()
    def consistent(self):
        if not hasattr(self, "store"):
            return
        assert {c.id for c in self.store.list()} == set(self.live())
        for conversation in self.live():
            path = self.store.active_path(conversation)
            expected, at = [], self.leaf[conversation]
            while at is not None:
                expected.append(at)
                at = self.messages[at][1]
            assert [m.id for m in path] == expected[::-1]
            assert [m.content for m in path] == [self.messages[m.id][2] for m in path]
        broken = self.store._connection.execute("PRAGMA foreign_key_check").fetchall()
        assert broken == []


TestTree = Tree.TestCase
TestTree.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
