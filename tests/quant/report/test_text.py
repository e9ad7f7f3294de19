"""The text that models are judged on."""

import re

import pytest

from localllm.errors import UsageError
from quant.imatrix.texts import default_texts
from quant.report.text import OWN_TEXT, judging_text


def runs(text, length=6):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length)}


def test_ours_shares_nothing_with_the_calibration_text():
    ours = judging_text("", "default")
    assert ours.name == OWN_TEXT
    assert ours.is_ours
    text = ours.texts[0].text
    assert len(text.encode()) > 18_000
    calibration = "\n".join(text.text for text in default_texts()[0])
    assert not runs(text) & runs(calibration)


def test_a_text_of_ones_own(tmp_path):
    path = tmp_path / "grüße.txt"
    path.write_bytes("Grüße \xff und Tschüss. ".encode("latin-1") * 100)
    found = judging_text(str(path), "none")
    assert (found.name, found.is_ours) == ("grüße.txt", False)
    assert found.sha256 != judging_text("", "none").sha256


def test_not_the_text_of_the_importance_matrix(tmp_path):
    path, copy = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("The same words. " * 100)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="judged on"):
        judging_text(str(path), str(copy))
    part = tmp_path / "part.txt"
    part.write_text(default_texts()[0][0].text)
    with pytest.raises(UsageError, match="judged on"):
        judging_text(str(part), "default")
    assert judging_text(str(part), "none").texts
