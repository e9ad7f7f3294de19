"""The scheduler on a model whose every token depends on the whole sequence before it."""

import math
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import ContextLengthError, EngineBusyError, EngineError
from serve.engine.draft import Drafter
from serve.engine.request import Adapter, Job
from serve.engine.scheduler import Scheduler
from serve.engine.speculation import MAX_GUESSING
from serve.engine.types import Delta, Finished, PromptLogprobs, SamplingParams, Started
from tests.fakes.backend import EOG, FakeBackend, reference


def job(job_id, prompt, max_tokens=None, stop=(), **more):
    return Job(job_id, tuple(prompt), SamplingParams(), max_tokens, tuple(stop), **more)


def run(scheduler, limit=10_000):
    events = []
    for _ in range(limit):
        if scheduler.idle:
            return events
        events += scheduler.step()
    raise AssertionError("the scheduler never became idle")


def finished(events):
    return {job_id: event for job_id, event in events if isinstance(event, Finished)}


def text_of(events, job_id):
    return "".join(event.text for i, event in events if i == job_id and isinstance(event, Delta))


def expected_text(prompt, max_tokens, n_ctx, repetitive=False):
    tokens, _ = reference(prompt, max_tokens, n_ctx, repetitive)
    return "".join(chr(t) for t in tokens if t != EOG)


ADAPTED = (Adapter("a", "", 1, 0.5),)
requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=40),  # few distinct tokens: many shared prefixes
        st.one_of(st.none(), st.integers(1, 20)),
        st.integers(0, 30),  # the step at which it arrives
        st.one_of(st.none(), st.integers(0, 30)),  # the step at which it is cancelled
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    requests=requests,
    n_ctx=st.integers(42, 160),
    n_parallel=st.integers(1, 5),
    can_share=st.booleans(),
    max_guess=st.sampled_from([0, 1, 8]),
    repetitive=st.booleans(),
    draft=st.sampled_from(["", "alike", "other"]),
    sets=st.sampled_from([[()], [(), ADAPTED], [(), ADAPTED, (*ADAPTED, Adapter("b", "", 1))]]),
)
def test_every_request_gets_the_text_it_would_get_alone(
    requests, n_ctx, n_parallel, can_share, max_guess, repetitive, draft, sets
):
    n_seq = n_parallel + 3 if can_share else n_parallel
    backend = FakeBackend(n_ctx=n_ctx, n_batch=16, n_seq=n_seq, can_share=can_share, repetitive=repetitive)
    # By this clock a turn of one adapter set takes some steps, and steps of any width take the same time.
    clock = count(0, 0.05).__next__
    drafting = FakeBackend(n_ctx=n_ctx - 10, n_seq=MAX_GUESSING, repetitive=repetitive == (draft == "alike"))
    drafter = Drafter(drafting, 300, clock) if draft else None
    scheduler = Scheduler(backend, n_parallel=n_parallel, max_guess=max_guess, drafter=drafter, clock=clock)
    events, cancelled, step = [], set(), 0
    while step <= 61 or not scheduler.idle:
        for i, (prompt, max_tokens, arrives, cancels) in enumerate(requests):
            if arrives == step:
                scheduler.submit(
                    job(i, prompt, max_tokens, client="ab"[i % 2], adapters=sets[i % 3 % len(sets)], priority=i % 2)
                )
            if cancels is not None and arrives + cancels == step:
                scheduler.cancel(i)
                cancelled.add(i)
        if not scheduler.idle:
            events += scheduler.step()
        step += 1
        assert step < 20_000, "stuck"
    ends = finished(events)
    for i, (prompt, max_tokens, _, _) in enumerate(requests):
        if i in cancelled and i not in ends:
            continue
        tokens, reason = reference(prompt, max_tokens, n_ctx, repetitive, sets[i % 3 % len(sets)])
        assert ends[i].reason == reason
        assert ends[i].usage.n_completion == len(tokens)
        assert text_of(events, i) == "".join(chr(t) for t in tokens if t != EOG)
    assert all(chain.closed for chain in backend.chains)
    assert scheduler.n_free + len(backend.cells) == n_seq, "a sequence leaked"


def test_requests_decode_together():
    backend = FakeBackend(n_ctx=512, n_batch=64, n_seq=16)
    scheduler = Scheduler(backend, n_parallel=8)
    for i in range(8):
        scheduler.submit(job(i, [100 + i, 7, 7], max_tokens=5))
    run(scheduler)
    assert backend.widest == 8
    assert backend.n_decodes <= 6


def test_more_requests_than_places_wait_their_turn():
    backend = FakeBackend(n_ctx=512, n_batch=64, n_seq=4)
    scheduler = Scheduler(backend, n_parallel=2)
    for i in range(7):
        scheduler.submit(job(i, [50 + i] * 3, max_tokens=4))
    events = run(scheduler)
    assert set(finished(events)) == set(range(7))
    starts = [i for i, event in events if isinstance(event, Started)]
    assert starts == list(range(7))


def test_a_long_prompt_does_not_stop_the_others():
    backend = FakeBackend(n_ctx=4096, n_batch=512, n_seq=8)
    scheduler = Scheduler(backend, n_parallel=4)
    scheduler.submit(job(0, [1, 2, 3], max_tokens=30))
    scheduler.step()
    scheduler.submit(job(1, [5] * 2000, max_tokens=1))
    told = [[i for i, _ in scheduler.step()] for _ in range(5)]
    assert len(reference([1, 2, 3], 30, 4096)[0]) >= 6, "choose a prompt whose answer is longer"
    assert all(0 in ids for ids in told), "the running request got a token in every step"


def test_a_prompt_seen_before_is_not_computed_again():
    backend = FakeBackend(n_ctx=512, n_batch=128, n_seq=6)
    scheduler = Scheduler(backend, n_parallel=2)
    prompt = list(range(60))
    scheduler.submit(job(0, prompt, max_tokens=1))
    run(scheduler)
    scheduler.submit(job(1, [*prompt[:50], 99, 98], max_tokens=1))
    scheduler.submit(job(2, prompt, max_tokens=1))
    events = run(scheduler)
    cached = {i: e.n_cached for i, e in events if isinstance(e, Started)}
    assert cached == {1: 50, 2: 59}
    assert finished(events)[2].usage.n_cached == 59


def test_a_prefix_that_runs_now_is_shared_too():
    backend = FakeBackend(n_ctx=512, n_batch=128, n_seq=6)
    scheduler = Scheduler(backend, n_parallel=2)
    prompt = list(range(40))
    scheduler.submit(job(0, prompt, max_tokens=50))
    scheduler.step()
    scheduler.submit(job(1, [*prompt, 77], max_tokens=1))
    started = [e for i, e in scheduler.step() if i == 1 and isinstance(e, Started)]
    assert started[0].n_cached == 40


def test_when_the_cache_is_full_one_gives_way_and_comes_back():
    backend = FakeBackend(n_ctx=100, n_batch=64, n_seq=6)
    scheduler = Scheduler(backend, n_parallel=3)
    prompts = {i: [10 + i, 200 + i, 30] for i in range(3)}
    lengths = {i: len(reference(p, 60, 100)[0]) for i, p in prompts.items()}
    assert sum(lengths.values()) > 100, "the answers must not fit together"
    for i, prompt in prompts.items():
        scheduler.submit(job(i, prompt, max_tokens=60))
    events = run(scheduler)
    for i, prompt in prompts.items():
        assert text_of(events, i) == expected_text(prompt, 60, 100)
        assert len([e for j, e in events if j == i and isinstance(e, Started)]) == 1


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers():
    scheduler = Scheduler(FakeBackend(n_ctx=64), n_parallel=2)
    with pytest.raises(ContextLengthError, match=r"64 tokens.*holds 64") as refused:
        scheduler.submit(job(0, [1] * 64))
    assert (refused.value.n_prompt, refused.value.n_ctx) == (64, 64)
    scheduler.submit(job(1, [1] * 63))
    assert finished(run(scheduler))[1].usage.n_completion == 1


def test_a_full_queue_refuses():
    scheduler = Scheduler(FakeBackend(), n_parallel=1, max_waiting=2)
    scheduler.submit(job(0, [1]))
    scheduler.submit(job(1, [1]))
    with pytest.raises(EngineBusyError):
        scheduler.submit(job(2, [1]))


def test_a_fatal_code_is_an_error():
    backend = FakeBackend()
    backend.decode = lambda: -3
    scheduler = Scheduler(backend, n_parallel=1)
    scheduler.submit(job(0, [1]))
    with pytest.raises(EngineError, match="code -3"):
        scheduler.step()


def test_a_stop_string_ends_the_text_before_it():
    wanted = expected_text([4, 5], 12, 64)
    stop = wanted[3:5]
    scheduler = Scheduler(FakeBackend(), n_parallel=1)
    scheduler.submit(job(0, [4, 5], 12, [stop]))
    events = run(scheduler)
    assert text_of(events, 0) == wanted.partition(stop)[0]
    assert finished(events)[0].reason == "stop"
    assert finished(events)[0].stop == stop


def test_delta_tokens_add_up():
    prompt = next([9, n] for n in range(99) if reference([9, n], 20, 256)[1] == "length")
    scheduler = Scheduler(FakeBackend(n_ctx=256), n_parallel=1)
    scheduler.submit(job(0, prompt, max_tokens=20))
    told = [e.n_tokens for _, e in run(scheduler) if isinstance(e, Delta)]
    assert told == [1] * 20


def test_guesses_save_steps_and_change_nothing():
    prompt = next([n, 1, 2] for n in range(99) if len(reference([n, 1, 2], 60, 256, repetitive=True)[0]) == 60)
    steps, texts = {}, {}
    for max_guess in (0, 8):
        backend = FakeBackend(n_ctx=256, repetitive=True)
        scheduler = Scheduler(backend, n_parallel=1, max_guess=max_guess, clock=count().__next__, max_loss=1.0)
        scheduler.submit(job(0, prompt, max_tokens=60))
        texts[max_guess] = text_of(run(scheduler), 0)
        steps[max_guess] = backend.n_decodes
    assert texts[8] == texts[0] == expected_text(prompt, 60, 256, repetitive=True)
    assert steps[0] == 60
    assert steps[8] < 40


def test_clients_share_no_prefix():
    scheduler = Scheduler(FakeBackend(n_ctx=512, n_batch=128, n_seq=6), n_parallel=2)
    cached = {}
    for i, client in enumerate(["a", "b", "a"]):
        scheduler.submit(job(i, range(60), max_tokens=1, client=client))
        cached |= {i: e.n_cached for i, e in run(scheduler) if isinstance(e, Started)}
    assert cached == {0: 0, 1: 0, 2: 59}


def test_a_busy_client_does_not_keep_the_others_out():
    scheduler = Scheduler(FakeBackend(n_ctx=512, n_batch=128, n_seq=6), n_parallel=2)
    for i in range(6):
        scheduler.submit(job(i, [100 + i] * 3, max_tokens=3, client="busy"))
    scheduler.submit(job(6, [90] * 3, max_tokens=3, client="other"))
    started = [i for i, event in run(scheduler) if isinstance(event, Started)]
    assert started[:2] == [0, 6]
    assert started[2:] == [1, 2, 3, 4, 5]


def test_many_with_one_long_prefix_compute_it_once():
    backend = FakeBackend(n_ctx=4096, n_batch=256, n_seq=24)
    scheduler = Scheduler(backend, n_parallel=16)
    prefix = [n % 200 for n in range(1000)]
    for i in range(16):
        scheduler.submit(job(i, [*prefix, i, 201], max_tokens=1))
    cached = {i: e.n_cached for i, e in run(scheduler) if isinstance(e, Started)}
    assert cached[0] == 0
    assert all(cached[i] == 1000 for i in range(1, 16))


def test_logprobs_of_the_answer_and_the_prompt():
    scheduler = Scheduler(FakeBackend(n_ctx=256, n_batch=8), n_parallel=1)
    prompt = list(range(20))
    scheduler.submit(job(0, prompt, max_tokens=5, n_logprobs=2, prompt_logprobs=True))
    events = [event for _, event in run(scheduler)]
    (told,) = [event.tokens for event in events if isinstance(event, PromptLogprobs)]
    assert [item.token for item in told] == prompt
    assert told[0].logprob is None
    assert all(item.logprob < 0 and len(item.top) == 2 for item in told[1:])
    answer = [item for event in events if isinstance(event, Delta) for item in event.logprobs]
    wanted, _ = reference(prompt, 5, 256)
    assert [item.token for item in answer] == wanted
    # The fake's logits: 2 for the chosen token, 0 for the other 256.
    assert all(abs(item.logprob - (2 - math.log(math.e**2 + 256))) < 1e-6 for item in answer)
    assert all(item.top[0] == (chr(item.token).encode(), item.logprob) for item in answer)


def test_a_prompt_can_be_scored_without_an_answer():
    scheduler = Scheduler(FakeBackend(n_ctx=256, n_batch=8), n_parallel=2)
    scheduler.submit(job(0, range(30), max_tokens=0, prompt_logprobs=True))
    scheduler.submit(job(1, range(30), max_tokens=4))
    events = run(scheduler)
    assert finished(events)[0].usage.n_completion == 0
    assert finished(events)[0].reason == "length"
    assert len(next(event for i, event in events if isinstance(event, PromptLogprobs)).tokens) == 30


def test_a_prompt_can_be_read_ahead():
    scheduler = Scheduler(FakeBackend(n_ctx=256, n_batch=8), n_parallel=2)
    scheduler.submit(job(0, range(30), max_tokens=0))
    events = run(scheduler)
    assert finished(events)[0].reason == "length"
    assert finished(events)[0].usage.n_completion == 0
    assert text_of(events, 0) == ""
    scheduler.submit(job(1, range(31), max_tokens=1))
    assert finished(run(scheduler))[1].usage.n_cached == 30


def test_ignore_eos_goes_on():
    prompt = next([n] for n in range(999) if reference([n], 50, 256)[1] == "stop")
    scheduler = Scheduler(FakeBackend(n_ctx=256), n_parallel=1)
    scheduler._backend.piece = lambda token: b"x"
    scheduler.submit(job(0, prompt, max_tokens=50, ignore_eos=True))
    assert finished(run(scheduler))[0].usage.n_completion == 50


def test_the_token_that_ends_a_turn_has_a_logprob_too():
    prompt = next([n] for n in range(999) if reference([n], 50, 256)[1] == "stop")
    wanted, _ = reference(prompt, 50, 256)
    scheduler = Scheduler(FakeBackend(n_ctx=256), n_parallel=1)
    scheduler.submit(job(0, prompt, max_tokens=50, n_logprobs=1))
    answer = [item.token for _, event in run(scheduler) if isinstance(event, Delta) for item in event.logprobs]
    assert answer == wanted
    assert answer[-1] == EOG
