"""The engine with the real starter model, in its own process."""

import asyncio
import os
import signal
from contextlib import aclosing

import numpy as np
import pytest

from localllm.errors import ContextLengthError, EngineDiedError, EngineLoadError, RequestError
from serve.engine.process import start_engine
from serve.engine.types import Delta, EngineSpec, Finished, GenerateRequest, PromptLogprobs, SamplingParams, Started

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0)


def ask(text, **fields):
    fields.setdefault("sampling", GREEDY)
    return GenerateRequest(messages=({"role": "user", "content": text},), **fields)


async def answer(engine, request):
    text, started, finished = "", None, None
    async for event in engine.generate(request):
        match event:
            case Started():
                started = event
            case Delta(piece, _):
                text += piece
            case Finished():
                finished = event
    return text, started, finished


@pytest.fixture
async def engine(starter_path, tmp_path):
    spec = EngineSpec(path=str(starter_path), n_ctx=2048, n_parallel=8)
    engine = await start_engine(spec, log_path=tmp_path / "engine.log")
    yield engine
    await engine.close()


@pytest.fixture
def reference(starter_path):
    """llama-cpp-python's own high-level class on the same file, with the same attention kernel."""
    import llama_cpp

    model = llama_cpp.Llama(str(starter_path), n_ctx=2048, flash_attn=True, verbose=False)
    yield model
    model.close()


# Engine and reference are both fresh for each question: reused prefixes lie elsewhere in the cache, which changes
# logits in their last bits and so, once in a hundred tokens or two, the choice between two near-equal tokens.
@pytest.mark.parametrize("question", ["What is gravity?", "Write a short poem about the sea.", "Zähle von 1 bis 5."])
async def test_greedy_text_is_llama_cpps_own(engine, reference, question):
    wanted = reference.create_chat_completion(
        [{"role": "user", "content": question}], temperature=0, max_tokens=64, repeat_penalty=1.0
    )
    text, _, finished = await answer(engine, ask(question, max_tokens=64))
    assert text == wanted["choices"][0]["message"]["content"]
    assert finished.reason == wanted["choices"][0]["finish_reason"]
    assert finished.usage.n_prompt == wanted["usage"]["prompt_tokens"], "no token more, no BOS twice"


async def test_a_second_turn_starts_from_the_first(engine):
    first, _, _ = await answer(engine, ask("Name a fruit.", max_tokens=20))
    chat = (
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Another one."},
    )
    _, started, _ = await answer(engine, GenerateRequest(messages=chat, sampling=GREEDY, max_tokens=4))
    assert started.n_cached > 30
    assert started.n_cached < started.n_prompt


async def test_eight_at_once_interleave_and_all_finish(engine):
    order = []

    async def one(i):
        async for event in engine.generate(ask(f"Tell me about the number {i}.", max_tokens=24)):
            order.append((i, type(event)))

    await asyncio.gather(*(one(i) for i in range(8)))
    first_end = order.index(next(entry for entry in order if entry[1] is Finished))
    assert {i for i, kind in order[:first_end] if kind is Delta} == set(range(8))
    assert sum(kind is Finished for _, kind in order) == 8


async def test_a_seed_repeats_and_zero_is_a_seed(engine):
    def request(seed):
        sampling = SamplingParams(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed)
        return ask("Write a story.", sampling=sampling, max_tokens=24)

    texts = {seed: [(await answer(engine, request(seed)))[0] for _ in range(3)] for seed in (0, 1)}
    # The first of three fills the prefix cache; the others start alike, so they must agree to the letter.
    assert texts[0][1] == texts[0][2]
    assert texts[1][1] == texts[1][2]
    assert texts[0][1] != texts[1][1]


async def test_stop_strings_and_limits(engine):
    text, _, finished = await answer(engine, ask("Count: one, two, three, four, five.", stop=(",",), max_tokens=64))
    assert "," not in text
    assert finished.reason in ("stop", "length")
    _, _, finished = await answer(engine, ask("Count to a hundred.", max_tokens=3))
    assert (finished.reason, finished.usage.n_completion) == ("length", 3)


async def test_penalties_change_the_text(engine):
    plain, _, _ = await answer(engine, ask("Say la la la.", max_tokens=32))
    strong = SamplingParams(temperature=0, repeat_penalty=1.8, presence_penalty=1.0)
    other, _, _ = await answer(engine, ask("Say la la la.", max_tokens=32, sampling=strong))
    assert plain != other


async def test_closing_the_stream_cancels_in_the_engine(engine):
    async with aclosing(engine.generate(ask("Write a very long story.", max_tokens=1500))) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    # Were it still running, the eight places and the cache would not all be free for these.
    requests = [answer(engine, ask(f"Story {i}", max_tokens=200)) for i in range(8)]
    ends = await asyncio.wait_for(asyncio.gather(*requests), 120)
    assert len(ends) == 8


async def test_a_long_prompt_names_both_numbers(engine):
    with pytest.raises(ContextLengthError) as refused:
        await answer(engine, ask("word " * 4000))
    assert refused.value.n_ctx == engine.info.n_ctx == 2048
    assert refused.value.n_prompt > 4000
    text, _, _ = await answer(engine, ask("Still there?", max_tokens=8))
    assert text


async def test_tokens_as_a_prompt(engine, reference):
    tokens = tuple(reference.tokenize(b"The capital of France is", add_bos=False))
    text, _, _ = await answer(engine, GenerateRequest(prompt=tokens, sampling=GREEDY, max_tokens=8))
    same, _, _ = await answer(engine, GenerateRequest(prompt="The capital of France is", sampling=GREEDY, max_tokens=8))
    assert text == same
    with pytest.raises(RequestError, match="not in this model's vocabulary"):
        await answer(engine, GenerateRequest(prompt=(10**6,)))
    with pytest.raises(RequestError, match="empty"):
        await answer(engine, GenerateRequest(prompt=""))


async def test_embeddings_equal_llama_cpps_own(engine, starter_path):
    import llama_cpp

    texts = ["The cat sat on the mat.", "A kitten rests on a rug.", "Interest rates rose again in June."]
    got = await engine.embed(texts)
    vectors = np.array(got.vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    own = llama_cpp.Llama(
        str(starter_path), embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, n_ctx=512, verbose=False
    )
    wanted = np.array([own.embed(text, normalize=True) for text in texts])
    own.close()
    assert np.abs(vectors - wanted).max() < 2e-2
    assert (np.sum(vectors * wanted, axis=1) > 0.999).all()
    again = await engine.embed(texts[:1])
    assert np.dot(again.vectors[0], vectors[0]) > 0.999
    many = await engine.embed(["word"] * 40)
    assert len(many.vectors) == 40


async def test_generation_goes_on_after_embeddings(engine):
    stream = asyncio.create_task(answer(engine, ask("Tell me a story.", max_tokens=60)))
    await asyncio.sleep(0.05)
    await engine.embed(["beside it"])
    text, _, finished = await stream
    assert text
    assert finished.usage.n_completion == 60 or finished.reason == "stop"


async def test_a_cache_in_eight_bits_answers_alike(starter_path, tmp_path, engine):
    spec = EngineSpec(path=str(starter_path), n_ctx=2048, kv_type="q8_0")
    small = await start_engine(spec, log_path=tmp_path / "small.log")
    try:
        text, _, _ = await answer(small, ask("What is the capital of France?", max_tokens=8))
        plain, _, _ = await answer(engine, ask("What is the capital of France?", max_tokens=8))
        assert text == plain
    finally:
        await small.close()
    assert "q8_0" in (tmp_path / "small.log").read_text()


async def test_guesses_do_not_change_greedy_text(starter_path, tmp_path):
    request = GenerateRequest(prompt="one two three four five six seven " * 6, sampling=GREEDY, max_tokens=48)
    texts = []
    for n_guess in (0, 8):
        spec = EngineSpec(path=str(starter_path), n_ctx=1024, n_guess=n_guess)
        engine = await start_engine(spec, log_path=tmp_path / "engine.log")
        texts.append((await answer(engine, request))[0])
        await engine.close()
    assert texts[0] == texts[1]


async def test_logprobs_are_llama_cpps_own(engine, starter_path):
    import llama_cpp

    text = "The capital of France is Paris"
    request = GenerateRequest(prompt=text, sampling=GREEDY, max_tokens=0, n_logprobs=3, prompt_logprobs=True)
    (event,) = [event async for event in engine.generate(request) if isinstance(event, PromptLogprobs)]
    told = event.tokens
    own = llama_cpp.Llama(str(starter_path), n_ctx=512, logits_all=True, flash_attn=True, verbose=False)
    tokens = own.tokenize(text.encode(), add_bos=False)
    own.eval(tokens)
    logits = own.scores[: len(tokens)].astype(np.float64)
    own.close()
    logprobs = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    assert [item.token for item in told] == tokens
    wanted = [logprobs[i, token] for i, token in enumerate(tokens[1:])]
    np.testing.assert_allclose([item.logprob for item in told[1:]], wanted, atol=2e-3)
    assert all(len(item.top) == 3 and item.top[0][1] >= item.top[1][1] for item in told[1:])


async def test_bias_and_tokenize(engine):
    tokens = await engine.tokenize("Gravity <|im_end|>")
    assert 2 in tokens
    assert 2 not in await engine.tokenize("Gravity <|im_end|>", parse_special=False)
    assert await engine.detokenize(tokens) == "Gravity <|im_end|>"
    with pytest.raises(RequestError, match="vocabulary"):
        await engine.detokenize([10**9])
    banned = SamplingParams(temperature=0, logit_bias=((tokens[0], -100.0),))
    plain, _, _ = await answer(engine, ask("What is gravity?", max_tokens=4))
    other, _, _ = await answer(engine, ask("What is gravity?", max_tokens=4, sampling=banned))
    assert plain.startswith("Gravity")
    assert not other.startswith("Gravity")
    with pytest.raises(RequestError, match="vocabulary"):
        await answer(engine, ask("x", sampling=SamplingParams(logit_bias=((10**9, 1.0),))))


async def test_kill_in_the_middle_of_an_answer(engine):
    async def read_until_killed():
        async for event in engine.generate(ask("Write a long story.", max_tokens=1500)):
            if isinstance(event, Delta):
                os.kill(engine.info.pid, signal.SIGKILL)

    with pytest.raises(EngineDiedError, match="signal 9"):
        await read_until_killed()
    assert not engine.alive
    with pytest.raises(EngineDiedError):
        await answer(engine, ask("Anyone?"))


async def test_a_file_that_is_no_model(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineLoadError):
        await start_engine(EngineSpec(path=str(bad)), log_path=tmp_path / "engine.log")
    assert (tmp_path / "engine.log").stat().st_mode & 0o777 == 0o600


async def test_no_prompt_in_the_log(starter_path, tmp_path):
    log = tmp_path / "engine.log"
    engine = await start_engine(EngineSpec(path=str(starter_path), n_ctx=512), log_path=log)
    await answer(engine, ask("xyzzy-canary-plugh", max_tokens=4))
    await engine.embed(["xyzzy-canary-plugh"])
    await engine.close()
    assert "xyzzy" not in log.read_text()


async def test_steps_are_reported(engine):
    async for _ in engine.generate(GenerateRequest(prompt="hello", max_tokens=5)):
        pass
    async with asyncio.timeout(10):
        while engine.steps is None:  # noqa: ASYNC110  the report is a frame of its own
            await asyncio.sleep(0.01)
    assert sum(engine.steps.seconds.counts) >= 1
    assert engine.steps.n_prefill >= 1
    assert 0 < engine.steps.python_seconds < engine.steps.seconds.total
    assert engine.steps.kv_size == engine.info.n_ctx
