"""Answers kept inside a grammar: in the scheduler, in llama.cpp's sampler, and in a whole engine."""

import json

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import RequestError
from serve.engine.constraint_types import Constraint
from serve.engine.process import start_engine
from serve.engine.request import Job
from serve.engine.scheduler import Scheduler
from serve.engine.types import Delta, EngineSpec, Finished, GenerateRequest, SamplingParams
from tests.fakes.backend import EOG, FakeBackend, next_token

GREEDY = SamplingParams(temperature=0)


class EvenMatcher:
    """Even tokens only, ``length`` of them; fails at ``fails_at``."""

    def __init__(self, length, fails_at=None):
        self.length, self.fails_at, self.accepted = length, fails_at, []

    @property
    def is_finished(self):
        return len(self.accepted) >= self.length

    def allows(self, token):
        return token % 2 == 0 and token != EOG

    def accept(self, token):
        assert self.allows(token)
        assert not self.is_finished
        if len(self.accepted) == self.fails_at:
            raise RequestError("too complex")
        self.accepted.append(token)

    def allowed(self):
        return np.array([100, 102])

    def forced(self):
        """Now right, now wrong, now too long."""
        return [100] * (len(self.accepted) % 4)


def expected(prompt, length):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length:
        token = next_token(tokens, repetitive=True)
        tokens.append(token if token % 2 == 0 and token != EOG else 100)
    return "".join(map(chr, tokens[len(prompt) :]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    asked=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=1, max_size=20),
            st.integers(1, 15),
            st.one_of(st.none(), st.integers(0, 20)),
        ),
        min_size=1,
        max_size=6,
    ),
    n_ctx=st.integers(60, 160),
    max_guess=st.sampled_from([0, 6]),
)
def test_every_constrained_request_gets_the_text_it_would_get_alone(asked, n_ctx, max_guess):
    backend = FakeBackend(n_ctx=n_ctx, n_batch=16, n_seq=6, repetitive=True)
    scheduler = Scheduler(backend, n_parallel=3, max_guess=max_guess)
    for i, (prompt, length, fails_at) in enumerate(asked):
        scheduler.submit(Job(i, tuple(prompt), matcher=EvenMatcher(length, fails_at)))
    events = []
    while not scheduler.idle:
        events += scheduler.step()
    for i, (prompt, length, fails_at) in enumerate(asked):
        mine = [event for job_id, event in events if job_id == i]
        text = "".join(event.text for event in mine if isinstance(event, Delta))
        if fails_at is not None and fails_at < length:
            assert isinstance(mine[-1], RequestError)
            assert text == expected(prompt, length)[:fails_at]
        else:
            assert mine[-1].reason == "stop"
            assert mine[-1].usage.n_completion == length
            assert text == expected(prompt, length)
    assert all(chain.closed for chain in backend.chains)
    assert scheduler.n_free + len(backend.cells) == 6, "a sequence leaked"


class Pair:
    """Allows two tokens."""

    is_finished = False

    def __init__(self, a, b):
        self.ids = np.array(sorted((a, b)))

    def allows(self, token):
        return token in self.ids

    def allowed(self):
        return self.ids


def chain_of(**params):
    from serve.engine.llama import SamplerChain

    return SamplerChain(SamplingParams(**params), 100, 64, (1,))


def test_allowed_tokens_keep_their_share():
    from serve.engine.constrained import Candidates

    logits = np.zeros(100, np.float32)
    logits[[7, 9, 50]] = np.log([3.0, 1.0, 400.0])
    chain = chain_of(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)
    candidates = Candidates(100)
    drawn = [candidates.sample(chain.handle, logits, Pair(7, 9)) for _ in range(2000)]
    chain.close()
    assert set(drawn) == {7, 9}
    assert 0.72 < drawn.count(7) / len(drawn) < 0.78
    assert logits[50] == np.log(np.float32(400.0)), "the logits are left as they are"


@pytest.mark.parametrize(
    "params", [{"temperature": 0}, {"seed": 1}, {"seed": 1, "top_k": 0, "top_p": 1.0, "min_p": 0.0}]
)
def test_a_grammar_outranks_a_ban(params):
    from serve.engine.constrained import Candidates

    chain = chain_of(**params, logit_bias=((7, -100.0), (9, -100.0)))
    assert Candidates(100).sample(chain.handle, np.zeros(100, np.float32), Pair(7, 9)) in (7, 9)
    chain.close()


def test_a_rejected_token_is_not_penalised():
    from serve.engine.constrained import Candidates

    logits = np.zeros(100, np.float32)
    logits[[50, 7, 9]] = [10.0, 5.0, 4.5]
    chain = chain_of(temperature=0, frequency_penalty=1.0)
    candidates = Candidates(100)
    # 50 is wanted first each time; only what was taken is penalised: 7 to 4.0, then 9 to 3.5, …
    drawn = [candidates.sample(chain.handle, logits, Pair(7, 9)) for _ in range(4)]
    assert drawn == [7, 9, 7, 9]
    assert candidates.sample(chain.handle, logits, Pair(50, 9)) == 50
    chain.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(starter_path, tmp_path_factory):
    spec = EngineSpec(path=str(starter_path), n_ctx=2048)
    engine = await start_engine(spec, log_path=tmp_path_factory.mktemp("engine") / "engine.log")
    yield engine
    await engine.close()


def chat(text, **more):
    return GenerateRequest(messages=({"role": "user", "content": text},), sampling=GREEDY, max_tokens=200, **more)


async def answer(engine, request):
    text, end = "", None
    async for event in engine.generate(request):
        match event:
            case Delta():
                text += event.text
            case Finished():
                end = event
    return text, end


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
class TestWithTheRealModel:
    async def test_an_answer_follows_its_schema_and_ends_with_it(self, engine):
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
        constraint = Constraint("json_schema", json.dumps(schema))
        text, end = await answer(engine, chat("Describe a person.", constraint=constraint))
        record = json.loads(text)
        assert record.keys() == {"name", "age"}
        assert isinstance(record["age"], int)
        assert end.reason == "stop"

    async def test_an_expression_decides_the_answer(self, engine):
        constraint = Constraint("regex", "(Rome|Oslo), [A-Z][a-z]{3,9}[.]")
        for sampling in (GREEDY, SamplingParams(temperature=1.5, seed=1, repeat_penalty=1.3)):
            request = GenerateRequest(prompt="The capital is", sampling=sampling, constraint=constraint)
            text, end = await answer(engine, request)
            assert text.startswith(("Rome, ", "Oslo, "))
            assert text.endswith(".")
            assert end.reason == "stop"

    async def test_a_constraint_that_is_met_anyway_changes_nothing(self, engine):
        # Once before: with the prompt's KV in the cache, both are computed in the same batches, to the last bit.
        await answer(engine, chat("What is the capital of France?"))
        free, end = await answer(engine, chat("What is the capital of France?"))
        bound, bound_end = await answer(
            engine, chat("What is the capital of France?", constraint=Constraint("regex", r"(?s:.*)"))
        )
        assert bound == free
        assert (bound_end.reason, bound_end.usage.n_completion) == (end.reason, end.usage.n_completion)

    async def test_a_bad_constraint_ends_its_request_alone(self, engine):
        with pytest.raises(RequestError, match="Unimplemented keys"):
            await answer(engine, chat("Hi", constraint=Constraint("json_schema", '{"not": {}}')))
        with pytest.raises(RequestError, match="ignore_eos"):
            await answer(engine, chat("Hi", constraint=Constraint("json_object"), ignore_eos=True))
        text, _ = await answer(engine, chat("Hi", constraint=Constraint("regex", "yes|no")))
        assert text in ("yes", "no")
        assert engine.alive

    async def test_a_prefix_begins_the_answer_and_is_not_repeated(self, engine):
        request = chat("Hi", answer_prefix="<|im_start|>", constraint=Constraint("regex", "[a-z]{4}"))
        plain = chat("Hi", constraint=Constraint("regex", "[a-z]{4}"))
        text, end = await answer(engine, request)
        assert len(text) == 4
        assert end.usage.n_prompt == (await answer(engine, plain))[1].usage.n_prompt + 1

    async def test_special_tokens_show_where_they_are_asked_for(self, engine):
        grammar = Constraint("lark", 'start: "a" <|im_start|> "b"')
        assert (await answer(engine, chat("Hi", constraint=grammar)))[0] == "ab"
        shown = chat("Hi", constraint=grammar, show_special=("<|im_start|>", "no token"))
        assert (await answer(engine, shown))[0] == "a<|im_start|>b"
