"""What a model writes never reaches the terminal as a control sequence, markup, HTML or link."""

import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.tui.markdown import code_blocks, harmless, safe_parser
from tests.app.tui.test_chat import write
from tests.fakes.client import Answer

HOSTILE = [
    "plain \x1b",
    "[31mred\x1b]52;c;aGVsbG8=\x07 \x9b31m \x90 \x9c \x9d0;title\x07",
    " [bold red]markup[/] [@click=app.quit]x[/] [link=https://x.example]y[/link]",
    "\r\x08\x08overwritten\x00\x7f\x85\n\n",
    '![pixel](https://evil.example/p.png "t\x1b") <img src=x onerror=y> <script>alert(1)</script>\n\n',
    "[shown](https://hidden.example/a?b) <https://auto.example> www.bare.example\n\n",
    "<div>\n<b>raw\x1b[2J</b>\n</div>\n\n",
    "&#27;[31m &#x9b; &#x202e;reversed &#xe0041; &lt;b&gt;\n\n",
    "\u202eabc\u2066 tag\U000e0041\n\n",
    "```\x1b]8;;https://x.example\x07py\ncode\x1b[5m\ttab\n```\n\n",
    "| a\x1b[1m | b |\n|---|---|\n| [bold]c | <i>d</i>\x9b |\n\n",
    "# head [red]\x1b[0m ing!\n\n> quote \x1b]0;t\x07\n\n1. item\x07\n\n`inline\x1b[1m`\n",
]


def segments(app):
    """Every piece of text that the compositor would send to the terminal, with its style."""
    app.screen._compositor._layers_visible  # noqa: B018  lays the screen out
    for strip in app.screen._compositor.render_strips():
        yield from strip


def assert_clean(app):
    for segment in segments(app):
        assert segment.control is None
        bad = [c for c in segment.text if unicodedata.category(c) in {"Cc", "Cs"} or c in "\u202e\u2066"]
        assert not bad, (bad, segment.text)
        if segment.style is not None:
            assert segment.style.link is None  # no OSC 8
            meta = segment.style.meta
            assert "@click" not in meta, meta


async def test_hostile_answers_are_drawn_as_text(app, client, settle, clock):
    client.answers = [Answer(HOSTILE)]
    async with app.run_test(size=(120, 100)) as pilot:
        await write(pilot, "Hi")
        await pilot.press("enter")
        for _ in range(30):
            await pilot.pause()
            assert_clean(app)
        await settle(pilot)
        assert_clean(app)
        text = "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())
        for piece in (
            "␛[31mred",
            "[bold red]markup[/]",
            "[@click=app.quit]x[/]",
            "[image: pixel] (https://evil.example/p.png)",
            "<script>alert(1)</script>",
            "shown (https://hidden.example/a?b)",
            "<b>raw␛[2J</b>",
            "code␛[5m",
        ):
            assert piece in text, piece
        svg = app.export_screenshot()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", svg)


async def test_a_hostile_title_model_and_prompt(make_app, model, conversations, settle):
    nasty = "\x1b]0;t\x07[bold]x[/] \u202e &#27;"
    conversation = conversations.create(nasty, nasty)
    user = conversations.append(conversation.id, None, "user", nasty)
    answer = conversations.append(conversation.id, user.id, "assistant", "", status="streaming", model=nasty)
    conversations.finish(answer.id, "error", "half", error=nasty)
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert_clean(app)
        await pilot.press("f4")
        await settle(pilot)
        assert_clean(app)
        await pilot.press("escape", "f3", *"x")
        await settle(pilot)
        assert_clean(app)
        await pilot.press("escape", "alt+up", "k", "e")
        await settle(pilot)
        assert_clean(app)


pieces = st.one_of(
    st.sampled_from(
        ["```", "~~~", "\n", "\n\n", "| a | b |\n", "|---|---|\n", "> ", "- ", "1. ", "# ", "**", "`", "    ", "\t"]
    ),
    st.sampled_from(
        ["[x](y)", "![", "](", "<a>", "</a>", "<!--", "&#27;", "\x1b[", "\x9b", "\u202e", "é", "漢字", "🙂", "[/]"]
    ),
    st.text(max_size=6),
)


@given(st.lists(pieces, max_size=25))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_stream_of_pieces_can_be_shown(pieces):
    import asyncio

    from textual.app import App

    from app.tui.widgets.safe_markdown import SafeMarkdown

    class Bare(App):
        def compose(self):
            yield SafeMarkdown()

    async def run():
        app = Bare()
        async with app.run_test() as pilot:
            markdown = app.query_one(SafeMarkdown)
            for piece in pieces:
                await markdown.write(piece)
            await pilot.pause()
            assert_clean(app)
            await markdown.finish("".join(pieces))
            await pilot.pause()
            assert_clean(app)

    asyncio.run(run())


@given(st.text())
@settings(derandomize=True, deadline=None)
def test_harmless_has_no_control_characters_and_is_stable(text):
    safe = harmless(text)
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t" for c in safe)
    assert harmless(safe) == safe
    safe.encode()


def test_links_and_images_are_text():
    tokens = safe_parser().parse("[a *b*](http://x) ![alt](src) <http://auto> ![]()")
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"text", "em_open", "em_close"}
    text = "".join(child.content for token in tokens for child in token.children or ())
    assert text == "a b (http://x) [image: alt] (src) http://auto [image: ] ()"


@pytest.mark.parametrize(
    ("markdown", "blocks"),
    [
        ("no code", []),
        ("```py\na\n```", [("py", "a")]),
        ("```\na", [("", "a")]),
        ("- x\n\n  ```js extra\n  a\n  ```\n\n~~~\nb\n~~~", [("js", "a"), ("", "b")]),
        ("para\n\n    indented\n", [("", "indented")]),
    ],
)
def test_code_blocks(markdown, blocks):
    assert [(block.language, block.text) for block in code_blocks(markdown)] == blocks


def test_importing_the_app_stays_light():
    heavy = (
        "mlx",
        "llama_cpp",
        "transformers",
        "huggingface_hub",
        "httpx2",
        "httpx",
        "uvicorn",
        "starlette",
        "jinja2",
        "numpy",
    )
    code = f"import sys, app.tui.app; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
