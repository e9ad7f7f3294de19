"""Requests with different adapters, on a model that notices when a sequence is computed with the wrong ones."""

import pytest

from serve.engine.groups import AdapterTurns
from serve.engine.request import Adapter, Job
from serve.engine.scheduler import Scheduler
from serve.engine.types import Started
from tests.fakes.backend import FakeBackend
from tests.serve.engine.test_scheduler import finished, run, text_of

A, B, C = ((Adapter(name, name, 1),) for name in "abc")
A_HALF = (Adapter("a", "a", 1, 0.5),)


class Clock:
    """Goes on by ``step`` seconds each time it is read."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def job(job_id, prompt, adapters=(), max_tokens=8, **more):
    return Job(job_id, tuple(prompt), max_tokens=max_tokens, adapters=adapters, ignore_eos=True, **more)


def alone(prompt, max_tokens, adapters):
    """What ``job`` must say."""
    backend = FakeBackend(n_ctx=512, n_batch=64)
    scheduler = Scheduler(backend, n_parallel=1)
    scheduler.submit(job(0, prompt, adapters, max_tokens))
    return text_of(run(scheduler), 0)


@pytest.mark.parametrize("n_ctx", [512, 60])  # in the small one requests give way to others
@pytest.mark.parametrize("step", [0.0, 0.05, 1.0])  # turns that never end, turns of some steps, of one
def test_each_answer_is_the_one_of_its_own_adapters(step, n_ctx):
    backend = FakeBackend(n_ctx=n_ctx, n_batch=32, n_seq=12)
    scheduler = Scheduler(backend, n_parallel=6, clock=Clock(step))
    sets = [(), A, B, (*A, *B), A_HALF]
    for i in range(15):
        scheduler.submit(job(i, [1, 2, 3, 4, 5, 6, i % 2], sets[i % 5], max_tokens=4 + i))
    events = run(scheduler)
    for i in range(15):
        assert text_of(events, i) == alone([1, 2, 3, 4, 5, 6, i % 2], 4 + i, sets[i % 5]), i
    assert all(chain.closed for chain in backend.chains)
    assert scheduler.n_free + len(backend.cells) == 12


def test_the_fake_model_tells_adapters_apart():
    texts = {alone([1, 2, 3], 8, adapters) for adapters in [(), A, B, (*A, *B), A_HALF]}
    assert len(texts) == 5


def test_a_prefix_is_shared_by_the_same_adapters_with_the_same_scales_only():
    backend = FakeBackend(n_ctx=512, n_batch=64, n_seq=12)
    scheduler = Scheduler(backend, n_parallel=2)
    cached = []
    for i, adapters in enumerate([(), A, A_HALF, (*A, *B), A, (), A_HALF]):
        scheduler.submit(job(i, range(40), adapters, max_tokens=1))
        cached += [event.n_cached for _, event in run(scheduler) if isinstance(event, Started)]
    assert cached == [0, 0, 0, 0, 39, 39, 39]


def test_requests_of_one_set_share_a_batch():
    backend = FakeBackend(n_ctx=512, n_batch=64, n_seq=12)
    scheduler = Scheduler(backend, n_parallel=8, clock=Clock())
    for i in range(4):
        scheduler.submit(job(i, [9, i], A if i % 2 else (), max_tokens=5))
    run(scheduler)
    assert backend.widest == 2
    assert backend.n_changes == 1, "no change of adapters in the middle of a turn"


def test_sets_share_the_time():
    backend = FakeBackend(n_ctx=2000, n_batch=64, n_seq=12)
    clock = Clock(0.01)
    scheduler = Scheduler(backend, n_parallel=8, clock=clock)
    for i, adapters in enumerate([(), A, B]):
        scheduler.submit(job(i, [9, i], adapters, max_tokens=400))
    events, steps = [], 0
    while not any(i in finished(events) for i in range(3)):
        events += scheduler.step()
        steps += 1
    lengths = [len(text_of(events, i)) for i in range(3)]
    assert min(lengths) > 350, "all had about the same time"
    assert backend.n_changes < steps / 5, "and kept it for several steps each"


def test_a_short_request_waits_for_one_turn_and_not_for_the_end_of_long_answers():
    backend = FakeBackend(n_ctx=2000, n_batch=64, n_seq=12)
    clock = Clock(0.01)
    scheduler = Scheduler(backend, n_parallel=8, clock=clock)
    scheduler.submit(job(0, [9], max_tokens=1000))
    for _ in range(20):
        scheduler.step()
    scheduler.submit(job(1, [8], A, max_tokens=2))
    began, events = clock.now, []
    while 1 not in finished(events):
        events += scheduler.step()
    assert clock.now - began < 0.5


class Turn:
    """A running request, as far as turns see it."""

    def __init__(self, adapters, priority=0):
        self.job = Job(0, (1,), adapters=adapters, priority=priority)


def test_nobody_is_passed_over_by_sets_that_come_and_go():
    used = []
    turns = AdapterTurns(used.append, quantum=1.0)
    a, b, c = Turn(A), Turn(B), Turn(C)
    now = 0.0
    for _ in range(12):  # B leaves whenever it has had its turn, and is back at once; C only waits
        turns.take([a, b, c] if used[-1:] != [B] else [a, c], now)
        now += 1.0
    assert used.count(C) >= 3


def test_more_important_requests_are_first_in_a_batch():
    turns = AdapterTurns(lambda _: None)
    low, high = Turn(A), Turn(A, priority=3)
    assert turns.take([low, high, Turn(B)], 0.0) == [high, low]
