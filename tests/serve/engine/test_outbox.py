"""Text shares frames; everything else goes out at once, in order."""

from collections.abc import Sequence

from serve.engine.outbox import Outbox
from serve.engine.request import JobEvent
from serve.engine.types import Delta, Finished, Started, TokenLogprob, Usage

END = Finished("stop", Usage(1, 0, 1, 0.0, 0.0))


class Recorder:
    """A clock that is set by hand, and the frames that were sent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frames: list[list[JobEvent]] = []
        self.outbox = Outbox(self.send, interval=1.0, clock=lambda: self.now)

    def send(self, events: Sequence[JobEvent]) -> None:
        self.frames.append(list(events))

    def put(self, now: float, *events: JobEvent) -> None:
        self.now = now
        self.outbox.put(events)


def test_the_first_text_goes_out_at_once_and_what_follows_is_joined():
    recorder = Recorder()
    recorder.put(0.0, (1, Started(3, 0)))
    recorder.put(0.1, (1, Delta("a", 1)))
    recorder.put(0.5, (1, Delta("b", 1)))
    recorder.put(0.9, (1, Delta("c", 2)))
    recorder.put(1.1, (1, Delta("d", 1)))
    assert recorder.frames == [[(1, Started(3, 0))], [(1, Delta("a", 1))], [(1, Delta("bcd", 4))]]


def test_the_end_of_one_takes_all_text_along_in_order():
    recorder = Recorder()
    recorder.put(0.0, (1, Delta("a", 1)), (2, Delta("x", 1)))
    recorder.put(0.1, (1, Delta("b", 1)), (2, Delta("y", 1)))
    recorder.put(0.2, (2, Delta("z", 1)), (2, END), (1, Delta("c", 1)))
    assert recorder.frames[1:] == [[(1, Delta("bc", 2)), (2, Delta("yz", 2)), (2, END)]]


def test_an_id_that_is_used_again_is_another_job():
    recorder = Recorder()
    recorder.put(0.0, (1, Delta("a", 1)), (1, END), (1, Delta("new", 1)))
    assert recorder.frames == [[(1, Delta("a", 1)), (1, END), (1, Delta("new", 1))]]


def test_steps_slower_than_the_interval_are_sent_one_by_one():
    recorder = Recorder()
    for step in range(3):
        recorder.put(2.0 * step, (1, Delta(str(step), 1)))
    assert recorder.frames == [[(1, Delta(str(step), 1))] for step in range(3)]


def test_no_log_probability_is_lost():
    recorder = Recorder()
    first, second = TokenLogprob(1, b"a", -0.1), TokenLogprob(2, b"b", -0.2)
    recorder.put(0.0, (1, Delta("", 0)))
    recorder.put(0.1, (1, Delta("a", 1, (first,))))
    recorder.put(0.2, (1, Delta("b", 1, (second,))), (1, END))
    assert recorder.frames[-1] == [(1, Delta("ab", 2, (first, second))), (1, END)]


def test_a_step_without_events_sends_nothing():
    recorder = Recorder()
    recorder.put(0.0)
    recorder.put(5.0)
    assert recorder.frames == []
