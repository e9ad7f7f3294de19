from contextlib import aclosing

import pytest

from app.turn import AnswerDelta, AnswerDone, AnswerFailed, AnswerStarted, ChatTurn, UserSaved, prompt_messages
from localllm.conversations import ConversationStore
from localllm.errors import ContextLengthError, ConversationError, ServerError
from tests.fakes.client import Answer, FakeClient


@pytest.fixture
def store(tmp_path):
    store = ConversationStore(tmp_path / "localllm.db")
    yield store
    store.close()


def turn(store, client, **kwargs):
    return ChatTurn(store, client, "m:q4", None, **kwargs)


async def collect(events):
    return [event async for event in events]


async def test_send_saves_streams_and_finishes(store):
    client = FakeClient()
    conversation = store.create(system_prompt="Be brief.")
    events = await collect(turn(store, client).send(conversation.id, None, "Hi"))
    assert [type(event) for event in events] == [UserSaved, AnswerStarted, AnswerDelta, AnswerDelta, AnswerDone]
    user, answer = store.active_path(conversation.id)
    assert (user.role, user.content, user.status) == ("user", "Hi", "done")
    assert (answer.role, answer.content, answer.status) == ("assistant", "Hello there.", "done")
    assert answer.model == "m:q4"
    assert answer.usage["n_completion"] == 42
    assert answer.usage["tokens_per_second"] == 41.0
    assert client.requests[0][1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


async def test_the_prompt_is_on_the_disk_before_the_request(store, tmp_path):
    conversation = store.create()
    seen = []

    class Peeking(FakeClient):
        async def stream_chat(self, *args, **kwargs):
            other = ConversationStore(tmp_path / "localllm.db")
            seen.extend((message.role, message.status) for message in other.active_path(conversation.id))
            other.close()
            async for event in super().stream_chat(*args, **kwargs):
                yield event

    await collect(turn(store, Peeking()).send(conversation.id, None, "Hi"))
    assert seen == [("user", "done"), ("assistant", "streaming")]


async def test_the_text_so_far_is_flushed_once_a_second(store):
    conversation = store.create()
    ticks = iter([0.0, 0.5, 1.1, 1.1, 1.2])
    saved = []
    async for event in turn(store, FakeClient([Answer(["a", "b", "c"])]), clock=lambda: next(ticks)).send(
        conversation.id, None, "Hi"
    ):
        if isinstance(event, AnswerDelta):
            saved.append(store.active_path(conversation.id)[-1].content)
    assert saved == ["", "ab", "ab"]


async def test_closing_keeps_the_text_as_cancelled_and_ends_the_request(store):
    client = FakeClient([Answer(["one", "two", "three"])])
    conversation = store.create()
    async with aclosing(turn(store, client).send(conversation.id, None, "Hi")) as events:
        async for event in events:
            if event == AnswerDelta("two"):
                break
    answer = store.active_path(conversation.id)[-1]
    assert (answer.content, answer.status) == ("onetwo", "cancelled")
    assert client.closed_streams == 1


async def test_an_error_keeps_prompt_and_text(store):
    client = FakeClient([Answer(["half"], error=ServerError("The server is gone.", "Try again."))])
    conversation = store.create()
    events = await collect(turn(store, client).send(conversation.id, None, "Hi"))
    assert isinstance(events[-1], AnswerFailed)
    user, answer = store.active_path(conversation.id)
    assert user.content == "Hi"
    assert (answer.content, answer.status, answer.error) == ("half", "error", "The server is gone. Try again.")


async def test_a_context_error_is_reported_as_it_is(store):
    client = FakeClient([Answer([], error=ContextLengthError(9000, 8192))])
    conversation = store.create()
    events = await collect(turn(store, client).send(conversation.id, None, "Hi"))
    assert isinstance(events[-1], AnswerFailed)
    assert isinstance(events[-1].error, ContextLengthError)


async def test_a_stream_without_an_end_is_an_error(store):
    conversation = store.create()
    events = await collect(turn(store, FakeClient([Answer(["half"], end=None)])).send(conversation.id, None, "Hi"))
    assert isinstance(events[-1], AnswerFailed)
    assert store.active_path(conversation.id)[-1].status == "error"


async def test_a_bug_is_raised_and_the_text_kept(store):
    class Broken(FakeClient):
        async def stream_chat(self, *args, **kwargs):
            async for event in super().stream_chat(*args, **kwargs):
                yield event
                raise ZeroDivisionError

    conversation = store.create()
    with pytest.raises(ZeroDivisionError):
        await collect(turn(store, Broken()).send(conversation.id, None, "Hi"))
    assert store.active_path(conversation.id)[-1].content == "Hello"
    assert store.active_path(conversation.id)[-1].status == "cancelled"


async def test_regenerate_adds_a_sibling_with_the_same_prompt(store):
    client = FakeClient([Answer(["first"]), Answer(["second"])])
    conversation = store.create()
    await collect(turn(store, client).send(conversation.id, None, "Hi"))
    first = store.active_path(conversation.id)[-1]
    await collect(turn(store, client).regenerate(first.id))
    assert [message.content for message in store.siblings(first.id)] == ["first", "second"]
    assert store.active_path(conversation.id)[-1].content == "second"
    assert client.requests[0][1] == client.requests[1][1]


async def test_only_an_answer_can_be_generated_again(store):
    conversation = store.create()
    user = store.append(conversation.id, None, "user", "Hi")
    with pytest.raises(ConversationError, match="Only an answer"):
        await collect(turn(store, FakeClient()).regenerate(user.id))


async def test_an_edit_is_a_sibling_of_the_message(store):
    client = FakeClient()
    conversation = store.create()
    await collect(turn(store, client).send(conversation.id, None, "Hi"))
    await collect(turn(store, client).send(conversation.id, None, "Hello"))
    first = store.active_path(conversation.id)[0]
    assert [message.content for message in store.siblings(first.id)] == ["Hi", "Hello"]
    assert client.requests[1][1] == [{"role": "user", "content": "Hello"}]


def test_roles_alternate_in_what_is_sent(store):
    conversation = store.create()
    first = store.append(conversation.id, None, "user", "one")
    failed = store.append(conversation.id, first.id, "assistant", "", status="error")
    second = store.append(conversation.id, failed.id, "user", "two")
    cut = store.append(conversation.id, second.id, "assistant", "par", status="cancelled")
    third = store.append(conversation.id, cut.id, "user", "three")
    assert prompt_messages(store.path_to(third.id)) == [
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": "par"},
        {"role": "user", "content": "three"},
    ]
