"""The MLX scheduler with a tiny model, step by step."""

import gc

import mlx.core as mx
import pytest

from localllm.errors import ContextLengthError, EngineBusyError, RequestError
from serve.engine.mlx_scheduler import MLXScheduler
from serve.engine.mlx_vocabulary import load_vocabulary
from serve.engine.mlx_weights import Weights
from serve.engine.request import Job
from serve.engine.types import Delta, Finished, SamplingParams, Started
from tests.fakes.mlx_models import make_model

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    directory = make_model(tmp_path_factory.mktemp("mlx") / "tiny")
    return Weights(directory), load_vocabulary(directory, [])


@pytest.fixture
def make(parts):
    def make(**fields):
        return MLXScheduler(*parts, **{"n_ctx": 256, "n_batch": 64, "n_parallel": 4} | fields)

    return make


def job(number, prompt=(10, 11, 12), **fields):
    return Job(**{"id": number, "prompt": tuple(prompt), "sampling": GREEDY, "ignore_eos": True} | fields)


def run(scheduler, steps=1000):
    events = []
    for _ in range(steps):
        if scheduler.idle:
            break
        events += scheduler.step()
    return events


def kinds(events, number):
    return [type(event) for owner, event in events if owner == number]


def n_told(events, number):
    return sum(event.n_tokens for owner, event in events if owner == number and isinstance(event, Delta))


def test_no_more_run_than_may_and_all_end(make):
    scheduler = make(n_parallel=2)
    for number in range(5):
        scheduler.submit(job(number, max_tokens=6))
    started, most = set(), 0
    while not scheduler.idle:
        for number, event in scheduler.step():
            if isinstance(event, Started):
                started.add(number)
            if isinstance(event, Finished):
                started.discard(number)
                assert event.usage.n_completion == 6
        most = max(most, len(started))
    assert most == 2


def test_too_many_waiting_are_refused(make):
    scheduler = make(max_waiting=2)
    for number in range(2):
        scheduler.submit(job(number))
    with pytest.raises(EngineBusyError):
        scheduler.submit(job(2))


def test_what_cannot_run_is_refused_at_once(make):
    scheduler = make()
    with pytest.raises(ContextLengthError, match="256"):
        scheduler.submit(job(0, prompt=[10] * 256))
    with pytest.raises(RequestError, match="vocabulary"):
        scheduler.submit(job(0, sampling=SamplingParams(logit_bias=((100_000, 1.0),))))
    assert scheduler.idle


def test_clients_take_turns(make):
    scheduler = make(n_parallel=2)
    for number in range(4):
        scheduler.submit(job(number, max_tokens=3, client="many"))
    scheduler.submit(job(4, max_tokens=3, client="one"))
    order = [number for number, event in run(scheduler) if isinstance(event, Started)]
    assert order == [0, 4, 1, 2, 3]


def test_higher_priorities_are_admitted_first(make):
    scheduler = make(n_parallel=1)
    for number, priority in enumerate([0, -1, 2]):
        scheduler.submit(job(number, max_tokens=2, priority=priority))
    assert [number for number, event in run(scheduler) if isinstance(event, Started)] == [2, 0, 1]


def test_deadlines_end_answers_and_refuse_who_has_not_begun(make):
    now = 0.0
    scheduler = make(n_parallel=1, clock=lambda: now)
    scheduler.submit(job(0, max_tokens=100, deadline=5.0))
    scheduler.submit(job(1, deadline=4.0))
    events = run(scheduler, steps=8)
    now = 4.5
    events += run(scheduler, steps=1)
    assert kinds(events, 1) == [EngineBusyError]
    now = 5.0
    events += run(scheduler, steps=1)
    [end] = [event for number, event in events if number == 0 and isinstance(event, Finished)]
    assert end.reason == "length"
    assert 0 < end.usage.n_completion == n_told(events, 0) < 100
    assert scheduler.idle


def test_a_long_prompt_comes_in_slices_while_others_decode(make):
    scheduler = make(n_ctx=2048, n_batch=512, clock=lambda: 0.0)  # nothing can be measured
    scheduler.submit(job(0, max_tokens=60))
    run(scheduler, steps=3)
    scheduler.submit(job(1, prompt=[20 + n % 50 for n in range(500)], max_tokens=2))
    events = run(scheduler, steps=8)
    assert n_told(events, 0) >= 4, "it went on"
    assert kinds(events, 1) == [Started], "seven slices of 64, and the rest"
    assert Finished in kinds(run(scheduler), 1)


def test_cancelling_frees_at_once_wherever_it_is(make):
    scheduler = make(n_parallel=1, n_batch=16)
    for number in range(3):
        scheduler.submit(job(number, prompt=[10] * 100))
    scheduler.cancel(2)  # waits
    run(scheduler, steps=2)
    scheduler.cancel(0)  # is being read
    run(scheduler, steps=15)
    scheduler.cancel(1)  # answers
    scheduler.cancel(77)
    assert scheduler.idle
    assert scheduler.step() == []
    scheduler.submit(job(5, max_tokens=2))
    assert kinds(run(scheduler), 5)[-1] is Finished


def test_the_longest_row_counts_for_every_row(make):
    scheduler = make()  # 256 tokens: two rows of 128
    scheduler.submit(job(0, prompt=[10] * 100, max_tokens=5))
    scheduler.submit(job(1, max_tokens=5))
    scheduler.submit(job(2, max_tokens=5))
    events = run(scheduler)
    order = [(number, type(event)) for number, event in events if not isinstance(event, Delta)]
    assert order.index((1, Started)) < order.index((0, Finished))
    assert order.index((2, Started)) > order.index((1, Finished)), "three rows of 100 are too many"


def test_the_youngest_gives_way_and_ends_the_same(make):
    alone = make()
    alone.submit(job(1, prompt=[30, 31], max_tokens=150))
    wanted = "".join(event.text for _, event in run(alone) if isinstance(event, Delta))
    scheduler = make()
    scheduler.submit(job(0, max_tokens=180))
    scheduler.submit(job(1, prompt=[30, 31], max_tokens=150))
    events = run(scheduler)
    assert "".join(event.text for number, event in events if number == 1 and isinstance(event, Delta)) == wanted
    assert kinds(events, 1).count(Started) == 1
    finished = [number for number, event in events if isinstance(event, Finished)]
    assert finished == [0, 1]


def test_one_that_came_back_may_be_cancelled_before_it_goes_on(make):
    scheduler = make(n_batch=16)
    scheduler.submit(job(0, max_tokens=180))
    scheduler.submit(job(1, prompt=[30, 31], max_tokens=150))
    scheduler.submit(job(2, max_tokens=1))
    while not any(kind is Finished for kind in kinds(scheduler.step(), 0)):
        pass
    scheduler.step()  # job 1 is admitted again
    scheduler.cancel(1)
    run(scheduler)
    assert scheduler.idle


def test_what_is_kept_stays_within_the_cache(make, parts):
    weights, _ = parts
    scheduler = make()
    for number in range(12):
        scheduler.submit(job(number, prompt=[10 + number] * 60, max_tokens=2))
        run(scheduler)
    scheduler.submit(job(99, prompt=[5] * 200, max_tokens=2))
    scheduler.step()
    assert scheduler._kept.n_bytes <= 56 * weights.kv_bytes
    run(scheduler)


def test_what_ended_leaves_no_more_than_is_kept(make):
    scheduler = make(n_ctx=1024)
    gc.collect()
    before = mx.get_active_memory()
    for number in range(24):
        scheduler.submit(job(number, prompt=[10 + number] * 30, max_tokens=2 + number % 7))
    run(scheduler)
    gc.collect()
    left = mx.get_active_memory() - before
    assert left < scheduler._kept.n_bytes + 50_000, "no batch is held by a row that was cut out of it"


def test_a_second_turn_starts_from_the_first(make):
    scheduler = make()
    prompt = tuple(range(10, 50))
    scheduler.submit(job(0, prompt=prompt, max_tokens=10))
    run(scheduler)
    scheduler.submit(job(1, prompt=(*prompt, 7, 8, 9), max_tokens=1))
    [started] = [event for _, event in run(scheduler) if isinstance(event, Started)]
    assert started.n_cached == 40


def test_a_grammar_that_fails_ends_its_request_and_no_other(make):
    class Failing:
        is_finished = False

        def allows(self, token):
            raise RequestError("too complex")

    scheduler = make()
    scheduler.submit(job(0, matcher=Failing()))
    scheduler.submit(job(1, max_tokens=5))
    events = run(scheduler)
    assert kinds(events, 0) == [Started, RequestError]
    assert kinds(events, 1)[-1] is Finished


def test_many_that_begin_alike_read_the_beginning_once(make):
    scheduler = make(n_ctx=1024, n_batch=32)
    prefix = tuple(20 + n % 90 for n in range(150))
    alone = []
    for number in range(3):
        single = make(n_ctx=1024)
        single.submit(job(number, prompt=(*prefix, 10 + number), max_tokens=8))
        alone.append([event.text for _, event in run(single) if isinstance(event, Delta)])
        scheduler.submit(job(number, prompt=(*prefix, 10 + number), max_tokens=8))
    events = run(scheduler)
    cached = [event.n_cached for _, event in events if isinstance(event, Started)]
    assert cached == [0, 150, 150]
    for number in range(3):
        assert [e.text for owner, e in events if owner == number and isinstance(e, Delta)] == alone[number]


def test_another_client_waits_for_nobody_and_shares_nothing(make):
    scheduler = make(n_ctx=1024, n_batch=32)
    prompt = tuple(20 + n % 90 for n in range(150))
    scheduler.submit(job(0, prompt=prompt, max_tokens=2))
    scheduler.submit(job(1, prompt=prompt, max_tokens=2, client="another"))
    started = [(number, e.n_cached) for number, e in scheduler.step() if isinstance(e, Started)]
    assert started == [(0, 0), (1, 0)]
    run(scheduler)


def test_the_end_of_a_turn_ends_it_and_is_not_shown(make, parts):
    _, vocabulary = parts
    end = min(vocabulary.end_tokens)
    sampling = SamplingParams(temperature=0, logit_bias=((end, 100.0),))
    scheduler = make()
    scheduler.submit(job(0, sampling=sampling, ignore_eos=False))
    events = run(scheduler)
    assert kinds(events, 0) == [Started, Finished]
    assert (events[-1][1].reason, events[-1][1].usage.n_completion) == ("stop", 1)
    scheduler.submit(job(1, sampling=sampling, shown=frozenset({end}), max_tokens=3))
    text = "".join(event.text for _, event in run(scheduler) if isinstance(event, Delta))
    assert text == vocabulary.token_text(end).decode() * 3
