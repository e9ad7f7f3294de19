"""What ``--check`` finds, and what it prints."""

import json

import pytest

from app.cli import finetune_check
from finetune.check import Bin, Piece, histogram, preview, report_of
from finetune.data.dataset import scan
from finetune.data.formatter import ChatFormatter
from finetune.data.rows import Completion
from finetune.recipe import make_recipe
from tests.fakes.chat_templates import family_tokenizer


@pytest.fixture
def formatter():
    return ChatFormatter(family_tokenizer("smollm2"))


@pytest.fixture
def checked(tmp_path, formatter):
    """A report about rows of which 25 are bad."""
    rows = [{"prompt": f"What is {number}?", "completion": f"It is \x1b[31m{number}."} for number in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], *[{"what": 1}] * 25]))
    return report_of("m", scan(make_recipe({"model": "m", "data": [str(path)]}), formatter), formatter)


def test_bins_double_and_begin_where_there_is_something():
    assert histogram([40, 64, 65, 300]) == (Bin(33, 64, 2), Bin(65, 128, 1), Bin(129, 256, 0), Bin(257, 512, 1))
    assert histogram([]) == ()


def test_a_preview_is_the_whole_text_in_pieces(formatter):
    (example,) = formatter.examples(Completion("2 + 2?", "4"), "a:1")
    shown = preview(example, formatter)
    assert [piece.learnt for piece in shown.pieces] == [False, True, False]
    assert shown.pieces[1] == Piece("4<|im_end|>", learnt=True)
    assert "".join(piece.text for piece in shown.pieces) == formatter.tokenizer.decode(example.tokens)


def test_the_report_counts(checked):
    assert checked.n_train + checked.n_valid == 12
    assert (checked.data.n_duplicates, len(checked.data.bad)) == (1, 25)
    assert 0 < checked.n_learnt < checked.n_tokens
    assert sum(each.count for each in checked.histogram) == 12
    assert len({shown.source for shown in checked.previews}) == 3


def test_the_first_bad_rows_are_printed_and_no_escape_of_the_data(checked, capsys):
    finetune_check._show(checked)
    printed = capsys.readouterr().out
    assert "  rows.jsonl:14: its fields (what) are of no known shape" in printed
    assert "  and 5 more: --json shows all" in printed
    assert printed.count("of no known shape") == 20
    assert "«It is" in printed
    assert "\x1b" not in printed


def test_needs_are_said_or_when_they_will_be_known(capsys):
    finetune_check._show_needs({})
    finetune_check._show_needs({"peak": 2 * 10**9, "budget": 8 * 10**9, "seconds": 90.0, "updates": 7, "note": "Note."})
    printed = capsys.readouterr().out
    assert "measured when training starts" in printed
    assert "7 updates" in printed
    assert "Note." in printed
