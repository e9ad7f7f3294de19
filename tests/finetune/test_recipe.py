"""What a recipe says is checked before anything is done."""

import pytest

from finetune.recipe import make_recipe, read_recipe
from localllm.errors import UsageError


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("name: 2026-13-45", "cannot be read"),
        ("name: 2026-11-29", "name is wrong"),
        ("data: [2026]", "data.0 is wrong"),
        ('data: [""]', "data.0 is wrong"),
        ("betas: [0.9, 1.5]", "betas.1 is wrong"),
        ("epochs: .inf", "epochs is wrong"),
        ("alpha: .nan", "alpha is wrong"),
        ("rnak: 4", "rnak is wrong"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, line, said):
    (tmp_path / "2026").mkdir()
    path = tmp_path / "r.yaml"
    path.write_text(f"model: m\ndata: rows.jsonl\n{line}\n")
    with pytest.raises(UsageError, match=said):
        read_recipe(path)


def test_data_beside_the_recipe_is_found_and_other_names_stay(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: [rows.jsonl, org/rows]\n")
    assert read_recipe(path).data == (str(tmp_path / "rows.jsonl"), "org/rows")
    path.write_text("model: m\ndata: rows.jsonl\n")
    assert read_recipe(path) == make_recipe({"model": "m", "data": [str(tmp_path / "rows.jsonl")]})
