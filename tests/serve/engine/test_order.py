"""Priorities, ageing and deadlines: who is admitted first, and what happens to those who are too late."""

import pytest

from localllm.errors import EngineBusyError
from serve.engine.order import giving_way, in_turn
from serve.engine.request import Adapter, Job
from serve.engine.scheduler import Scheduler
from serve.engine.types import Started
from tests.fakes.backend import FakeBackend
from tests.serve.engine.test_groups import Clock
from tests.serve.engine.test_scheduler import finished, run, text_of


class Request:
    def __init__(self, number, client="", priority=0, arrived=0.0, adapters=()):
        self.job = Job(number, (1,), client=client, priority=priority, adapters=adapters)
        self.arrived = arrived


def order(waiting, running=(), now=0.0):
    return [request.job.id for request in in_turn(waiting, running, now)]


def test_equals_go_by_arrival():
    assert order([Request(1), Request(2), Request(3)]) == [1, 2, 3]


def test_clients_alternate_and_who_runs_nothing_is_first():
    waiting = [Request(1, "a"), Request(2, "a"), Request(3, "b"), Request(4, "b")]
    assert order(waiting) == [1, 3, 2, 4]
    assert order(waiting, [Request(0, "a")]) == [3, 1, 4, 2]


def test_of_one_client_the_adapters_alternate():
    a, b = (Adapter("a", "a", 1),), (Adapter("b", "b", 1),)
    waiting = [Request(1, adapters=a), Request(2, adapters=a), Request(3, adapters=b)]
    assert order(waiting) == [1, 3, 2]
    assert order(waiting, [Request(0, adapters=a)]) == [3, 1, 2]


def test_using_many_adapters_gives_a_client_no_larger_share():
    many = [Request(i, "many", adapters=(Adapter(str(i), "", 1),)) for i in range(4)]
    assert order([*many, Request(9, "one")]) == [0, 9, 1, 2, 3]


def test_higher_priorities_are_first():
    waiting = [Request(1), Request(2, priority=-1), Request(3, priority=2), Request(4, priority=2)]
    assert order(waiting) == [3, 4, 1, 2]


def test_who_has_waited_long_catches_up_but_does_not_overtake_by_age_alone():
    old, high = Request(1, arrived=0.0), Request(2, priority=2, arrived=100.0)
    assert order([Request(2, priority=2, arrived=9.0), old], now=9.0) == [2, 1]
    assert order([old, high], now=100.0) == [1, 2]
    # Among equals age is no priority: a flood of one client does not push another one back.
    flood = [Request(i, "flood", arrived=0.0) for i in range(3)]
    assert order([*flood, Request(9, "late", arrived=100.0)], [Request(7, "flood")], now=100.0)[0] == 9


def test_the_least_important_gives_way_and_of_equals_the_youngest():
    oldest, young, low = Request(1, arrived=0.0), Request(2, arrived=5.0), Request(3, priority=-1, arrived=1.0)
    assert giving_way([oldest, young, low]) is low
    assert giving_way([oldest, young]) is young


def admitted(events):
    return [job_id for job_id, event in events if isinstance(event, Started)]


def test_the_scheduler_admits_by_priority():
    scheduler = Scheduler(FakeBackend(n_ctx=512), n_parallel=1, clock=Clock())
    for i, priority in enumerate([0, -1, 3]):
        scheduler.submit(Job(i, (1, 2, i), max_tokens=2, priority=priority))
    assert admitted(run(scheduler)) == [2, 0, 1]


def test_a_low_priority_is_not_starved():
    clock = Clock(1.0)
    scheduler = Scheduler(FakeBackend(n_ctx=512), n_parallel=1, clock=clock)
    scheduler.submit(Job(0, (1, 2), max_tokens=2, priority=-2))
    events = []
    for i in range(1, 100):
        scheduler.submit(Job(i, (1, i), max_tokens=2, priority=2))
        events += scheduler.step()
    assert 0 in admitted(events)


@pytest.fixture
def timed():
    backend, clock = FakeBackend(n_ctx=512, n_seq=4), Clock()
    return backend, clock, Scheduler(backend, n_parallel=1, clock=clock)


def test_who_cannot_begin_in_time_is_refused(timed):
    backend, clock, scheduler = timed
    scheduler.submit(Job(0, (1, 2), max_tokens=30, ignore_eos=True))
    scheduler.step()
    scheduler.submit(Job(1, (1, 3), max_tokens=30, deadline=2.0))
    clock.now = 1.9
    assert all(i == 0 for i, _ in scheduler.step())
    clock.now = 2.0
    [error] = [event for i, event in scheduler.step() if i == 1]
    assert isinstance(error, EngineBusyError)
    assert 0 in finished(run(scheduler))
    assert all(chain.closed for chain in backend.chains)


def test_a_prompt_that_is_not_read_in_time_is_refused_and_leaves_no_sequence(timed):
    backend, clock, scheduler = timed
    scheduler.submit(Job(0, tuple(range(100)), deadline=1.0))
    scheduler.step()
    clock.now = 1.0
    assert [type(event) for _, event in scheduler.step()] == [EngineBusyError]
    assert scheduler.idle
    assert scheduler.n_free + len(backend.cells) == 4


def test_an_answer_ends_at_its_deadline_with_what_it_has(timed):
    _, clock, scheduler = timed
    scheduler.submit(Job(0, (1, 2), deadline=5.0, ignore_eos=True, stop=("xyz",)))
    events = []
    for _ in range(6):
        events += scheduler.step()
    clock.now = 5.0
    events += scheduler.step()
    assert finished(events)[0].reason == "length"
    assert finished(events)[0].usage.n_completion == len(text_of(events, 0)) == 6
    assert scheduler.idle


def test_one_that_gave_way_ends_at_its_deadline_too():
    clock = Clock()
    scheduler = Scheduler(FakeBackend(n_ctx=50, n_seq=4), n_parallel=2, clock=clock)
    for i in range(2):
        scheduler.submit(Job(i, (1, 2, i), max_tokens=45, deadline=9.0 if i else None, ignore_eos=True))
        clock.now += 0.1
    events = []
    while 0 not in finished(events) and len(scheduler._running) < 2:
        events += scheduler.step()
    while len(scheduler._running) == 2:
        events += scheduler.step()
    assert 1 not in finished(events), "it has given way"
    clock.now = 20.0
    events += scheduler.step()
    assert finished(events)[1].reason == "length"
    assert 0 in finished([*events, *run(scheduler)])
