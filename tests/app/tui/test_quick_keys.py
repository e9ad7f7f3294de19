"""Keys that come faster than the app can draw."""

import asyncio

from app.tui.widgets.prompt import Prompt
from tests.app.tui.test_chat import shown


async def test_enter_pressed_twice_sends_once(app, client, settle, conversations):
    async with app.run_test() as pilot:
        app.screen.prompt.put("Hi")
        for _ in range(2):  # both keys are in the queue before anything is sent
            app.screen.prompt.post_message(Prompt.Submitted("Hi"))
        await settle(pilot)
        assert shown(app) == [("user", "Hi", "done"), ("assistant", "Hello there.", "done")]
    assert len(client.requests) == 1
    assert len(conversations.list()) == 1


async def test_changing_the_conversation_while_another_is_being_shown(app, settle, conversations):
    first, second = (conversations.create(title, "smollm2-135m:q4_1") for title in ("One", "Two"))
    for conversation in (first, second):
        leaf = conversations.append(conversation.id, None, "user", conversation.title).id
        conversations.append(conversation.id, leaf, "assistant", f"Answer {conversation.title}", status="done")
    async with app.run_test() as pilot:
        await settle(pilot)
        screen = app.screen
        showing = [screen.show_conversation(id_) for id_ in (first.id, second.id, None, first.id)]
        await asyncio.gather(*showing)
        await settle(pilot)
        assert [text for _, text, _ in shown(app)] == ["One", "Answer One"]
        assert len(screen.query("MessageView")) == 2
