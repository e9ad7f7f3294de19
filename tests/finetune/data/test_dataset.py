"""Rows are split, cut, counted and refused as the recipe says."""

import json
import random

import pytest

from finetune.data.dataset import load_dataset, scan
from finetune.data.formatter import ChatFormatter
from finetune.recipe import make_recipe
from localllm.errors import DataError, JobCancelledError
from tests.fakes.chat_templates import family_tokenizer


@pytest.fixture
def formatter():
    return ChatFormatter(family_tokenizer("smollm2"))


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def pairs(n):
    return [{"prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(n)]


def recipe(*data, **fields):
    return make_recipe({"model": "m", "data": data, **fields})


def texts(examples):
    return {example.tokens.tobytes() for example in examples}


def test_a_row_keeps_its_side_when_rows_are_moved_or_added(tmp_path, formatter):
    rows = pairs(60)
    first = load_dataset(recipe(write(tmp_path / "a.jsonl", rows)), formatter)
    random.Random(0).shuffle(rows)
    more = [{"prompt": f"More {number}", "completion": "yes"} for number in range(40)]
    second = load_dataset(recipe(write(tmp_path / "b.jsonl", [*more, *rows])), formatter)
    assert 1 <= len(first.valid) <= 15
    assert len(first.train) + len(first.valid) == 60
    assert texts(first.valid) <= texts(second.valid)
    assert texts(first.train) <= texts(second.train)


def test_some_row_is_held_out_of_ten_and_none_of_three(tmp_path, formatter):
    ten = load_dataset(recipe(write(tmp_path / "a.jsonl", pairs(10)), valid_fraction=0.0001), formatter)
    assert (len(ten.train), len(ten.valid)) == (9, 1)
    three = load_dataset(recipe(write(tmp_path / "b.jsonl", pairs(3)), valid_fraction=0.0001), formatter)
    assert (len(three.train), len(three.valid)) == (3, 0)
    none = load_dataset(recipe(write(tmp_path / "c.jsonl", pairs(30)), valid_fraction=0), formatter)
    assert (len(none.train), len(none.valid)) == (30, 0)


def test_a_file_of_held_out_rows_is_the_held_out_side_and_shares_nothing(tmp_path, formatter):
    rows = pairs(20)
    write(tmp_path / "train.jsonl", rows[:15])
    write(tmp_path / "valid.jsonl", rows[12:])
    write(tmp_path / "test.jsonl", pairs(5))
    data = load_dataset(recipe(str(tmp_path)), formatter)
    assert (len(data.train), len(data.valid), data.report.n_duplicates) == (15, 5, 3)
    assert not texts(data.train) & texts(data.valid)
    assert data.report.notes == ("test.jsonl is left out: it is for a test afterwards.",)
    assert data.prompts[0][0]["content"] == "What is 15?", "samples are of held-out rows first"


def test_duplicates_are_left_out_whatever_their_shape(tmp_path, formatter):
    rows = [
        {"instruction": "Hi", "output": "Hello."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"text": "once"},
    ]
    data = load_dataset(recipe(write(tmp_path / "a.jsonl", rows)), formatter)
    assert data.report.shapes == {"alpaca": 1, "text": 1}
    assert data.report.n_duplicates == 1
    assert "1 rows say what another says" in "\n".join(data.report.lines())


def test_long_rows_are_cut_and_counted_and_those_without_an_answer_left_are_bad(tmp_path, formatter):
    rows = [{"text": "word " * 200}, {"prompt": "word " * 200, "completion": "yes"}, {"text": "short"}]
    data = scan(recipe(write(tmp_path / "a.jsonl", rows), max_length=32), formatter)
    short, cut = sorted(len(example.tokens) for example in (*data.train, *data.valid))
    assert short < cut == 32
    assert data.report.n_cut == 1
    assert max(data.report.lengths) > 200, "lengths are those before the cut"
    (bad,) = data.report.bad
    assert (bad.source, bad.reason) == ("a.jsonl:2", "no token to learn is left within 32 tokens")


BAD = ['{"oops', {"what": 1}, {"prompt": "a", "completion": "b"}, {"messages": []}, [1]]


def test_bad_rows_stop_the_run_and_are_named_in_the_order_of_the_file(tmp_path, formatter):
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(DataError) as caught:
        load_dataset(recipe(path), formatter)
    assert [line.split(": ")[0].strip() for line in caught.value.message.splitlines()[1:]] == [
        "a.jsonl:1", "a.jsonl:2", "a.jsonl:4", "a.jsonl:5",
    ]  # fmt: skip
    assert "--skip-bad" in caught.value.hint


def test_many_bad_rows_are_counted(tmp_path, formatter):
    path = write(tmp_path / "a.jsonl", [{"what": number} for number in range(9)])
    with pytest.raises(DataError, match=r"9 of the rows[\s\S]*and 4 more"):
        load_dataset(recipe(path), formatter)


def test_bad_rows_are_left_out_where_that_is_wanted(tmp_path, formatter):
    data = load_dataset(recipe(write(tmp_path / "a.jsonl", BAD), skip_bad=True), formatter)
    assert len(data.train) == 1
    assert len(data.report.bad) == 4
    with pytest.raises(DataError, match="No row is left"):
        load_dataset(recipe(write(tmp_path / "b.jsonl", BAD[:2]), skip_bad=True), formatter)


def test_the_hash_is_of_the_rows_that_are_used(tmp_path, formatter):
    rows = pairs(5)
    once = load_dataset(recipe(write(tmp_path / "a.jsonl", rows)), formatter).sha256
    again = load_dataset(recipe(write(tmp_path / "b.jsonl", [*rows, rows[0], "{"]), skip_bad=True), formatter).sha256
    other = load_dataset(recipe(write(tmp_path / "c.jsonl", rows[1:])), formatter).sha256
    assert once == again != other


def test_reading_says_how_far_it_is_and_can_be_cancelled(tmp_path, formatter):
    path = write(tmp_path / "a.jsonl", pairs(300))
    said = []
    load_dataset(recipe(path), formatter, progress=lambda *what: said.append(what))
    assert said[0] == ("rows read", 256, None)
    assert said[-1] == ("rows made tokens", 300, 300)

    def cancel():
        raise JobCancelledError

    with pytest.raises(JobCancelledError):
        load_dataset(recipe(path), formatter, check_cancelled=cancel)


def test_parquet(tmp_path, formatter):
    import pyarrow  # 0.2 s, for this test alone
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.Table.from_pylist([*pairs(3), {"prompt": "", "completion": "x"}]), tmp_path / "a.parquet"
    )
    data = load_dataset(recipe(str(tmp_path / "a.parquet"), skip_bad=True), formatter)
    assert len(data.train) == 3
    assert data.report.bad[0].source == "a.parquet, row 4"
