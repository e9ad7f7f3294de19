from datetime import date

import pytest
from textual.binding import Binding

from app.tui.export import conversation_markdown
from app.tui.widgets.sidebar import day_name
from app.tui.widgets.status import Speed, StatusLine, meter


@pytest.mark.parametrize(
    ("used", "total", "bar"),
    [(0, 100, "┄┄┄┄"), (1, 100, "━┄┄┄"), (50, 100, "━━┄┄"), (100, 100, "━━━━"), (300, 100, "━━━━"), (5, 0, "┄┄┄┄")],
)
def test_meter(used, total, bar):
    assert meter(used, total, 4) == bar


def test_the_status_line_says_it_in_words():
    line = StatusLine()
    assert str(line.render()) == "no model"
    line.model = "m:q4"
    line.speed = Speed(41.4, 812, 8192)
    assert str(line.render()) == "m:q4 · 41 tok/s · 812/8192 ━┄┄┄┄┄┄┄┄┄ 10 %"
    line.speed = Speed(0.0, 812, 0)
    assert str(line.render()) == "m:q4"
    line.doing = "loading\x1b m:q4…"
    assert str(line.render()) == "m:q4 · loading␛ m:q4…"


@pytest.mark.parametrize(
    ("day", "name"),
    [(9, "Today"), (10, "Today"), (8, "Yesterday"), (4, "This week"), (1, "This month")],
)
def test_day_names(day, name):
    assert day_name(date(2025, 10, day), date(2025, 10, 9)) == name
    assert day_name(date(2020, 1, day), date(2025, 10, 9)) == "Earlier"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("ctrl+n", "Ctrl+N"),
        ("f1", "F1"),
        ("alt+up", "Alt+↑"),
        ("escape", "Esc"),
        ("e", "e"),
        ("shift+pageup", "Shift+PgUp"),
    ],
)
def test_keys_are_shown_as_on_a_keyboard(make_app, key, shown):
    assert make_app().get_key_display(Binding(key, "x")) == shown


def test_an_export_says_how_answers_ended(conversations):
    conversation = conversations.create("", "m", system_prompt="Be brief.")
    user = conversations.append(conversation.id, None, "user", "Hi")
    for status, content in (("cancelled", "Half"), ("error", "")):
        answer = conversations.append(conversation.id, user.id, "assistant", "", status="streaming", model="m")
        conversations.finish(answer.id, status, content)
    text = conversation_markdown(conversations.get(conversation.id), conversations.path_to(answer.id))
    assert text.startswith("# Conversation\n\n*2025-")
    assert "## System\n\nBe brief.\n\n## You\n\nHi\n\n## m\n\n*(empty)*\n\n*(broke off)*\n" in text
    half = conversation_markdown(conversation, conversations.path_to(answer.id - 1))
    assert half.endswith("## m\n\nHalf\n\n*(stopped)*\n")
