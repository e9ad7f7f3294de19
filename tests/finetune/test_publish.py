"""What the end of a training says of it."""

from finetune.publish import held_out


def test_before_and_after_on_rows_that_were_held_out():
    history = [{"step": 0, "valid_loss": 2.5}, {"step": 1, "loss": 2.0}, {"step": 1, "valid_loss": 1.5}]
    assert held_out(history) == {"before": 2.5, "after": 1.5}
    assert held_out([*history, {"step": 2, "valid_loss": 1.75}]) == {"before": 2.5, "after": 1.5}
    assert held_out([{"step": 0, "valid_loss": 1.0}, {"step": 1, "valid_loss": 1.25}]) == {"before": 1.0, "after": 1.25}
    assert held_out(history[:1]) == {"before": 2.5, "after": 2.5}
    assert held_out(history[1:2]) is None
