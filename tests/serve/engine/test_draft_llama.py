"""Draft models on llama.cpp, with tiny random weights."""

import pytest

from localllm.errors import EngineLoadError
from serve.engine.loaded import LoadedModel
from serve.engine.request import Job
from serve.engine.types import Delta, EngineSpec, SamplingParams
from tests.fakes.gguf_files import write_tiny_gguf


@pytest.fixture
def files(tmp_path):
    return [str(write_tiny_gguf(tmp_path / f"{seed}.gguf", seed=seed)) for seed in (0, 1)]


def load(path, draft=""):
    return LoadedModel(EngineSpec(path=path, n_ctx=256, n_parallel=2, n_threads=1, n_guess=0, draft_path=draft))


def answer(model, sampling):
    """The texts of two requests, the steps they took, and the largest number of tokens in a step."""
    prompts = ([1, 40, 50, 60, 70], [1, 90, 91])
    for i, prompt in enumerate(prompts):
        model.scheduler.submit(Job(i, tuple(prompt), sampling, 80, ignore_eos=True, n_logprobs=0))
    tokens, steps = [[], []], 0
    while not model.scheduler.idle:
        steps += 1
        for job_id, event in model.scheduler.step():
            if isinstance(event, Delta):
                tokens[job_id] += [item.token for item in event.logprobs]
    return tokens, steps


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SamplingParams(temperature=1, top_k=1, seed=3)])
def test_its_own_draft_is_always_right(files, sampling):
    plain, n_steps = answer(load(files[0]), sampling)
    model = load(files[0], files[0])
    drafts = model.scheduler._speculation._drafts
    drafts._pause = 1  # whatever the clock says, it goes on drafting
    drafts._costs.learn = lambda *_: None
    model.scheduler._speculation._costs.seconds = lambda _: 1.0
    drafted, n_fewer = answer(model, sampling)
    assert drafted == plain
    assert n_fewer < n_steps / 3
    assert drafts._right / drafts._all > 0.95


def test_another_ones_drafts_change_nothing(files):
    greedy = SamplingParams(temperature=0)
    plain, _ = answer(load(files[0]), greedy)
    model = load(files[0], files[1])
    model.scheduler._speculation._costs.seconds = lambda _: 1.0
    drafted, _ = answer(model, greedy)
    drafts = model.scheduler._speculation._drafts
    assert drafted == plain
    assert drafts._right / drafts._all < 0.3
    assert drafts._pause > 32, "it waits longer after every try"


def test_a_draft_with_other_tokens_is_refused(files, tmp_path):
    other = write_tiny_gguf(tmp_path / "other.gguf", extra={"tokenizer.ggml.add_bos_token": False})
    with pytest.raises(EngineLoadError, match="BOS") as refused:
        load(files[0], str(other))
    assert "draft" in refused.value.hint
