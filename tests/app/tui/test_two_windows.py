"""What another window does to the conversation that is shown here."""

import pytest

from localllm.errors import ConversationError, DiskFullError
from tests.app.tui.test_chat import notices, shown, write
from tests.fakes.models import put_model


@pytest.mark.parametrize(
    "keys",
    [
        ["f4"],  # rename
        ["alt+up", "left"],  # the other branch
        ["ctrl+g", "d"],  # delete
        ["ctrl+o", "down", "enter"],  # another model
        ["H", "o", "enter"],
    ],
    ids=["rename", "branch", "delete", "model", "send"],
)
async def test_a_conversation_that_another_window_deleted_is_told_of(app, home, client, settle, conversations, keys):
    put_model(home, "other", "q8_0")
    async with app.run_test(size=(120, 40)) as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("ctrl+r")
        await settle(pilot)
        conversations.delete(conversations.list()[0].id)
        for key in keys:
            await pilot.press(key)
            await settle(pilot)
        assert "is not there (any more)" in notices(app)
        await pilot.press("escape", "escape", "ctrl+n")
        await write(pilot, "Again")
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app)[0][1] == "Again"


async def test_a_title_given_to_a_conversation_that_went_meanwhile(app, settle, conversations):
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("f4")
        conversations.delete(conversations.list()[0].id)
        await pilot.press("!", "enter")
        await settle(pilot)
        assert "is not there (any more)" in notices(app)


async def test_a_full_disk_keeps_the_prompt(app, settle, conversations, monkeypatch):
    def full(*args):
        raise DiskFullError("The disk is full.", "Free some room.")

    monkeypatch.setattr(conversations, "create", full)
    async with app.run_test() as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        assert "The disk is full" in notices(app)
        assert app.screen.prompt.text == "Hi"


@pytest.mark.parametrize("keys", [["ctrl+n"], ["f3", "x"]], ids=["new", "search"])
async def test_a_database_that_cannot_be_read_for_a_while_is_told_of(app, settle, conversations, monkeypatch, keys):
    def locked(*args, **kwargs):
        raise ConversationError("The conversations are in use.", "Try again.")

    async with app.run_test(size=(120, 40)) as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        await settle(pilot)
        with monkeypatch.context() as for_a_while:
            for_a_while.setattr(conversations, "list", locked)
            for_a_while.setattr(conversations, "search", locked)
            for key in keys:
                await pilot.press(key)
                await settle(pilot)
            assert "in use" in notices(app)
        await pilot.press("escape", "ctrl+n")
        await write(pilot, "Again")
        await pilot.press("enter")
        await settle(pilot)
        assert shown(app)[0][1] == "Again"
