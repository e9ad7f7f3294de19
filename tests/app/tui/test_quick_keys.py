"""Keys that come faster than the app can draw."""

import asyncio

import pytest

from app.tui.screens.chat import ChatScreen
from app.tui.screens.train import TrainScreen
from app.tui.screens.train_dialogs import TrainingsDialog
from app.tui.screens.train_run import TrainRunScreen
from app.tui.widgets.prompt import Prompt
from localllm.jobs.record import JobSpec, JobStatus, write_status
from tests.app.tui.test_chat import shown, wait_for


@pytest.fixture
def training(jobs):
    """A training that has ended."""
    given = {"recipe": {"model": "smollm2-135m:q4_1", "name": "zorba"}}
    job = jobs.create(JobSpec("finetune", "rows", "tests.fakes.train_entries:train", given))
    write_status(job.directory, JobStatus("done", result={"name": "zorba"}))
    return job


def stack(app):
    return [type(screen) for screen in app.screen_stack]


async def test_enter_pressed_twice_sends_once(app, client, settle, conversations):
    async with app.run_test() as pilot:
        app.screen.prompt.put("Hi")
        for _ in range(2):  # both keys are in the queue before anything is sent
            app.screen.prompt.post_message(Prompt.Submitted("Hi"))
        await wait_for(pilot, lambda: shown(app))
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


async def test_a_key_pressed_again_opens_one_window(app, training, settle):
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f10")
        await settle(pilot)
        screen = app.screen
        for _ in range(3):  # the keys are in the queue before the trainings are read
            screen.action_trainings()
        await settle(pilot)
        assert stack(app) == [ChatScreen, TrainScreen, TrainingsDialog]
        await pilot.press("enter")
        await settle(pilot)
        screen = app.screen
        for _ in range(3):
            screen.action_trainings()
        await settle(pilot)
        assert stack(app) == [ChatScreen, TrainScreen, TrainRunScreen, TrainingsDialog]


async def test_a_start_pressed_twice_shows_the_training_once(app, training, settle):
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f10")
        await settle(pilot)
        screen = app.screen
        for _ in range(2):  # one thread has started it, another has joined it
            screen.show_training(training)
        await settle(pilot)
        assert stack(app) == [ChatScreen, TrainScreen, TrainRunScreen]


async def test_an_answer_found_under_a_window_does_not_close_the_window(app, training, settle):
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f10")
        await settle(pilot)
        screen = app.screen
        await pilot.press("t")
        await settle(pilot)
        screen.answer("smollm2-135m:q4_1")  # a thread has it only now
        await settle(pilot)
        assert stack(app) == [ChatScreen, TrainScreen, TrainingsDialog]
