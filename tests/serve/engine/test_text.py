"""Text from token bytes: whole characters, stop strings."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.text import TextStream


def stream(pieces, stop=()):
    text = TextStream(stop)
    return [text.feed(piece) for piece in pieces], text


def test_a_character_in_pieces_comes_whole():
    raw = "é 🦙 中".encode()
    told, text = stream([raw[i : i + 1] for i in range(len(raw))])
    assert "".join(told) == "é 🦙 中"
    assert all("\ufffd" not in piece for piece in told)
    assert text.finish() == ""


def test_an_unfinished_character_is_dropped():
    told, text = stream([b"ok ", "🦙".encode()[:3]])
    assert "".join(told) + text.finish() == "ok "


def test_what_may_become_a_stop_string_is_held_back():
    told, text = stream([b"one <", b"|", b"no", b"pe"], ["<|end|>"])
    assert told == ["one ", "", "<|no", "pe"]
    told, text = stream([b"one <", b"|en", b"d|> two"], ["<|end|>"])
    assert "".join(told) == "one "
    assert text.stopped
    assert text.finish() == ""


def test_held_text_comes_out_at_the_end():
    told, text = stream([b"a <|e"], ["<|end|>"])
    assert told == ["a "]
    assert text.finish() == "<|e"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text("abé🦙", max_size=30),
    stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 120), max_size=20),
)
def test_the_pieces_never_matter(text, stops, cuts):
    raw = text.encode()
    edges = sorted({0, len(raw), *(c for c in cuts if c < len(raw))})
    told, state = stream([raw[a:b] for a, b in pairwise(edges)], stops)
    got = "".join(told) + state.finish()
    # The earliest stop that was complete when its last byte arrived ends the text: never later than the first match.
    first = min((at for at in (text.find(stop) for stop in stops) if at >= 0), default=-1)
    if first < 0:
        assert got == text
    else:
        assert state.stopped
        assert text.startswith(got)
        assert not any(stop in got for stop in stops)
