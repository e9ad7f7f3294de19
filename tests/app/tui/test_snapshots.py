"""Pictures of the app. After a wanted change: ``pytest tests/app/tui/test_snapshots.py --snapshot-update``."""

import pytest

from tests.fakes.client import Answer, FakeClient

ANSWER = """\
Gravity is what keeps your feet on the ground: **every mass** pulls at every other one.

## In code

```python
def force(m1: float, m2: float, r: float) -> float:
    return 6.674e-11 * m1 * m2 / r**2
```

1. It falls off with the *square* of the distance.
2. It is never repulsive, not even for `light`.
"""
SIZES = [(80, 24), (120, 40)]


@pytest.fixture
def filled(make_app, model, conversations, clock):
    """An app over a home with three conversations; the last one has a second answer."""

    def make(theme):
        clock.now -= 86_400
        for title in ("What did the Romans ever do for us?", "Rename files to lower case"):
            conversation = conversations.create(title, "smollm2-135m:q4_1")
            conversations.append(conversation.id, None, "user", title)
        clock.now += 86_400
        conversation = conversations.create("What is gravity?", "smollm2-135m:q4_1")
        user = conversations.append(conversation.id, None, "user", "What is gravity?")
        for text in ("Short.", ANSWER):
            answer = conversations.append(
                conversation.id, user.id, "assistant", "", status="streaming", model="smollm2-135m:q4_1"
            )
            usage = {"n_prompt": 770, "n_completion": 42, "n_ctx": 8192, "tokens_per_second": 41.2, "reason": "stop"}
            conversations.finish(answer.id, "done", text, usage=usage)
        return make_app(FakeClient([Answer()]), theme=theme)

    return make


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
@pytest.mark.parametrize("theme", ["localllm-dark", "localllm-light"])
def test_chat(snap_compare, filled, theme, size):
    assert snap_compare(filled(theme), terminal_size=size)


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
def test_welcome(snap_compare, make_app, model, size):
    assert snap_compare(make_app(), terminal_size=size)


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
def test_on_a_message(snap_compare, filled, size):
    assert snap_compare(filled("localllm-dark"), press=["alt+up"], terminal_size=size)


def test_editing(snap_compare, filled):
    assert snap_compare(filled("localllm-dark"), press=["alt+up", "e"], terminal_size=(80, 24))


def test_help(snap_compare, filled):
    assert snap_compare(filled("localllm-dark"), press=["f1"], terminal_size=(80, 24))


def test_list(snap_compare, filled):
    assert snap_compare(filled("localllm-light"), press=["ctrl+g"], terminal_size=(80, 24))
