"""Documents share rows; nothing is lost, nothing is doubled, little is padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.packing import BatchPlan, make_batch, pack, row_capacity
from tests.fakes.tiny_llama import random_examples


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_is_in_one_row_and_no_row_overflows(lengths):
    rows = pack(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)


def test_best_fit_wastes_little():
    lengths = np.random.default_rng(0).integers(5, 200, 2000).tolist()
    rows = pack(lengths, 256)
    assert sum(lengths) / (256 * len(rows)) > 0.99


def test_a_document_that_is_too_long_is_a_bug():
    with pytest.raises(ValueError, match="51 tokens"):
        pack([3, 51], 50)


def test_rows_are_as_short_as_packing_allows():
    assert row_capacity([60] * 100, 2048) == 64
    # Pairs of 40 waste a third of a row of 64, and a sixteenth of one of 128.
    assert row_capacity([40] * 99 + [60], 2048) == 128
    assert row_capacity([3000, 10], 2048) == 2048


def test_batches_hold_inputs_and_what_follows_them():
    examples = random_examples(2)
    batch = make_batch([examples], 64)
    first, second = (len(example.tokens) - 1 for example in examples)
    assert batch.inputs[0, :first].tolist() == examples[0].tokens[:-1].tolist()
    assert batch.targets[0, first : first + second].tolist() == examples[1].tokens[1:].tolist()
    assert batch.segments[0].tolist() == [1] * first + [2] * second + [0] * (64 - first - second)
    assert batch.n_supervised == sum(example.n_supervised for example in examples)
    assert not batch.supervised[0, first + second :].any()


@pytest.mark.parametrize("packed", [True, False])
def test_an_epoch_has_each_document_once_and_the_next_another_order(packed):
    examples = random_examples(60)
    plan = BatchPlan(examples, rows=3, capacity=64, packed=packed, seed=1)
    first, second = plan.epoch(0), plan.epoch(1)
    assert sorted(i for rows in first for row in rows for i in row) == list(range(60))
    assert first != second
    assert first == BatchPlan(examples, 3, 64, packed, 1).epoch(0)


def test_a_plan_goes_on_where_it_was_left():
    plan = BatchPlan(random_examples(60), rows=2, capacity=64, packed=True, seed=1)
    whole = list(plan.batches(2))
    rest = list(plan.batches(2, first=3))
    assert len(rest) == len(whole) - 3
    assert np.array_equal(rest[0].inputs, whole[3].inputs)
