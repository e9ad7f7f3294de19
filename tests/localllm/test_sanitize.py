"""No control character gets through to a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.sanitize import one_line, printable

HOSTILE = [
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]0;owned\x07",  # sets the title
    "\x1b]52;c;cm0gLXJmIH4=\x07",  # writes the clipboard
    "\x9b31m",  # CSI as a single C1 character
    "\x90q\x9c",  # a device control string
    "safe\rover",  # overwrites the line
    "\x08\x08\x08",
    "\x7f",
    "\u202egnp.exe",  # turns the direction
    "\u2066hidden\u2069",
    "\U000e0041",  # a tag character
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("clean", [printable, one_line])
def test_nothing_hostile_is_left(clean, text):
    found = [character for character in clean(text) if unicodedata.category(character) in {"Cc", "Cf"}]
    assert found == []


def test_controls_are_shown_and_not_dropped():
    assert printable("a\x1b[31mb\x00\x7f") == "a␛[31mb␀␡"


def test_lines_tabs_and_people_s_own_letters_stay():
    text = "héllo\n\twörld 👩\u200d💻 नमस्ते \u200f"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"


@given(st.text(), st.integers(0, 50))
def test_a_text_cut_anywhere_is_as_safe_as_the_whole(text, at):
    for piece in (text[:at], text[at:]):
        assert not [c for c in printable(piece) if unicodedata.category(c) == "Cc" and c not in "\n\t"]


@given(st.text())
def test_printable_twice_is_printable_once(text):
    assert printable(printable(text)) == printable(text)


@given(st.text(), st.integers(1, 40))
def test_one_line_is_one_line_within_the_limit(text, limit):
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


def test_a_cut_is_marked():
    assert one_line("one\ttwo  three", 9) == "one two…"
    assert one_line("one\ttwo  three") == "one two three"
