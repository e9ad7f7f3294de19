"""Guesses of a second model: in step with the requests, never in their way."""

from itertools import count

import pytest

from localllm.errors import EngineError
from serve.engine.draft import Drafter
from serve.engine.lookup import Lookup
from serve.engine.prefix import as_tokens
from serve.engine.request import Job, Running
from serve.engine.scheduler import Scheduler
from serve.engine.text import TextStream
from serve.engine.types import Delta, Finished
from tests.fakes.backend import EOG, FakeBackend, FakeChain, next_token, reference


def request(tokens, client=""):
    job = Job(1, tuple(tokens), client=client)
    return Running(job, list(tokens), FakeChain(), TextStream(()), Lookup(), as_tokens(job.prompt), 0.0)


def ahead(tokens, n):
    tokens, start = list(tokens), len(tokens)
    while len(tokens) < start + n:
        tokens.append(next_token(tokens))
    return tokens[start:]


def drafter(**options):
    backend = FakeBackend(**{"n_ctx": 400, "n_batch": 300, "n_seq": 4} | options)
    return Drafter(backend, 300, count().__next__), backend


def test_a_draft_is_what_the_model_would_say():
    made, _ = drafter()
    asked = [request(range(20)), request([7, 8, 9])]
    assert made.draft(asked, 5) == [ahead(range(20), 5), ahead([7, 8, 9], 5)]
    assert made.total_seconds > made.seconds > 0


@pytest.mark.parametrize("n_right", range(6))
def test_it_keeps_in_step_with_what_was_accepted(n_right):
    made, _ = drafter()
    asked = request(range(20))
    (first,) = made.draft([asked], 5)
    asked.tokens += [*first[:n_right], 77]
    assert made.draft([asked], 5) == [ahead(asked.tokens, 5)]
    asked.tokens += [1, 2, 3]  # steps without a draft
    assert made.draft([asked], 3) == [ahead(asked.tokens, 3)]


def test_what_was_read_is_not_read_again():
    made, backend = drafter()
    asked = request(range(100))
    made.draft([asked], 4)
    rows = []
    add = backend.add
    backend.add = lambda tokens, pos, seq, **more: rows.append(len(tokens)) or add(tokens, pos, seq, **more)
    asked.tokens += [5, 6]
    made.draft([asked], 4)
    assert sum(rows) == 5
    rows.clear()
    made.draft([request([*range(100), 9, 9])], 4)  # the next turn of the same chat
    assert sum(rows) == 5
    rows.clear()
    made.draft([request(range(100), client="another")], 4)
    assert sum(rows) == 103


def test_a_long_text_is_read_bit_by_bit():
    made, _ = drafter(n_ctx=2000, n_batch=512)
    asked = request([n % 200 for n in range(700)])
    assert [made.draft([asked], 2) for _ in range(2)] == [[[]], [[]]]
    assert made.draft([asked], 2) == [ahead(asked.tokens, 2)]


def test_two_requests_with_one_text_do_not_share_a_sequence():
    made, backend = drafter()
    asked = [request(range(50)), request(range(50))]
    assert made.draft(asked, 3) == [ahead(range(50), 3)] * 2
    decoded = backend.n_decodes
    assert made.draft(asked, 3) == [ahead(range(50), 3)] * 2
    assert backend.n_decodes == decoded + 3


def test_a_full_cache_forgets_who_has_ended():
    made, backend = drafter(n_ctx=100)
    for start in range(10):
        asked = request(range(start, start + 60))
        assert made.draft([asked], 4) == [ahead(asked.tokens, 4)]
    assert made.draft([request(range(80)), request(range(90, 150))], 4) == [[], []], "these two do not fit together"
    assert not backend.cells


def test_what_it_cannot_read_it_does_not_draft():
    made, _ = drafter(n_ctx=64)
    assert made.draft([request(range(62))], 4) == [[]], "longer than its context"
    assert made.draft([request([1, 299, 300])], 4) == [[]], "a token that it does not have"
    few, _ = drafter()
    few._n_vocab = 100
    (draft,) = few.draft([request([1, 2, 3])], 8)
    assert draft == ahead([1, 2, 3], 8)[: len(draft)]
    assert all(token < 100 for token in draft)
    assert len(draft) < 8


def test_a_fatal_code_is_an_error():
    made, backend = drafter()
    backend.decode = lambda: -3
    with pytest.raises(EngineError, match=r"draft.*code -3"):
        made.draft([request([1])], 2)


def run(prompt, draft, n=60):
    """Text, steps of the model, steps of the draft model, of an answer of ``n`` tokens."""
    clock = count().__next__
    backend = FakeBackend(n_ctx=400, n_batch=64)
    made = Drafter(draft, 300, clock) if draft else None
    scheduler = Scheduler(backend, n_parallel=1, drafter=made, clock=clock, max_loss=1.0)
    scheduler.submit(Job(0, tuple(prompt), max_tokens=n))
    text = ""
    while not scheduler.idle:
        for _, event in scheduler.step():
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Finished):
                assert event.usage.n_completion == n
    return text, backend.n_decodes, draft.n_decodes if draft else 0


def long_prompt(n):
    return next([i, 1] for i in range(10_000) if EOG not in reference([i, 1], n, 400)[0])


def test_the_same_model_as_its_own_draft_saves_steps_and_changes_nothing():
    prompt = long_prompt(60)
    plain, n_steps, _ = run(prompt, None)
    text, n_fewer, _ = run(prompt, FakeBackend(n_ctx=400, n_batch=64, n_seq=4))
    assert text == plain
    assert n_steps == 60
    assert n_fewer < 40


def test_a_draft_that_is_always_wrong_is_switched_off():
    prompt = long_prompt(200)
    plain, n_steps, _ = run(prompt, None, 200)
    wrong = FakeBackend(n_ctx=400, n_batch=64, n_seq=4, repetitive=True)
    text, n_more, n_drafted = run(prompt, wrong, 200)
    assert text == plain
    assert n_more == n_steps
    assert n_drafted < 60


class Timed(FakeBackend):
    """A model whose steps take ``cost`` seconds a row, by ``now``, a clock that several models share."""

    def __init__(self, now, cost):
        super().__init__(n_ctx=400, n_batch=64, n_seq=8)
        self.now, self.cost = now, cost

    def decode(self):
        self.now[0] += self.cost(len(self.rows))
        return super().decode()


@pytest.mark.parametrize(
    ("step", "drafting", "pays"),
    [
        (lambda rows: 1.0 * rows, 1.0, False),  # as large as the model, and rows cost as much as steps
        (lambda rows: 1.0, 1.0, False),
        (lambda rows: 1.0 * rows, 0.0, False),
        (lambda rows: 1.0, 0.05, True),
    ],
)
def test_a_draft_that_is_always_right_is_used_only_where_it_is_faster(step, drafting, pays):
    now = [0.0]
    model, draft = Timed(now, step), Timed(now, lambda rows: drafting)
    made = Drafter(draft, 300, lambda: now[0])
    scheduler = Scheduler(model, n_parallel=1, drafter=made, clock=lambda: now[0])
    seconds = []
    for number in range(2):  # the first answer earns the allowance for what is tried
        began = now[0]
        scheduler.submit(Job(number, tuple(long_prompt(200)), max_tokens=200, client=str(number)))
        while not scheduler.idle:
            scheduler.step()
        seconds.append(now[0] - began)
    plain = 200 * step(1)
    assert seconds[1] < plain / 3 if pays else sum(seconds) < 2 * plain * 1.03
    assert (draft.n_decodes > 100) == pays
