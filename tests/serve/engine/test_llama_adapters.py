"""Adapters in llama.cpp itself, on a tiny model: the answers are those of a plain context with the same adapters."""

import ctypes
import os

import llama_cpp as lib
import numpy as np
import pytest

from localllm.errors import EngineBusyError, RequestError
from serve.engine.llama import LlamaContext, LlamaModel
from serve.engine.llama_adapters import AdapterChecker, LoadedAdapters
from serve.engine.loaded import LoadedModel
from serve.engine.request import Job
from serve.engine.types import EngineSpec, GenerateRequest, SamplingParams
from tests.fakes.gguf_files import write_tiny_gguf, write_tiny_lora
from tests.serve.engine.test_scheduler import finished, run

N_CTX = 512
PROMPT = (1, 260, 261, 262, 263, 264, 265, 266, 267)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    base = write_tiny_gguf(directory / "base.gguf", n_ctx_train=N_CTX)
    write_tiny_lora(directory / "a.gguf", base, seed=1)
    write_tiny_lora(directory / "b.gguf", base, seed=2, rank=2, alpha=0.0, names=("attn_k", "ffn_up", "output.weight"))
    write_tiny_lora(directory / "c.gguf", base, seed=3, rank=1, names=("token_embd.weight", "attn_output"))
    return directory


def choices(files, spec):
    """``a b:0.5`` as paths and scales."""
    parts = [part.partition(":") for part in spec.split()]
    return tuple((str(files / f"{name}.gguf"), float(scale or 1)) for name, _, scale in parts)


def plain_logits(files, spec, tokens):
    """The logits after each of ``tokens``, float32 of shape (n, n_vocab), from a fresh model and a fresh context."""
    model = lib.llama_model_load_from_file(os.fsencode(files / "base.gguf"), lib.llama_model_default_params())
    pairs = choices(files, spec)
    handles = [lib.llama_adapter_lora_init(model, os.fsencode(path)) for path, _ in pairs]
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = N_CTX, 1, 1
    context = lib.llama_init_from_model(model, params)
    if pairs:
        array = (lib.llama_adapter_lora_p_ctypes * len(pairs))(
            *(ctypes.cast(handle, lib.llama_adapter_lora_p_ctypes) for handle in handles)
        )
        lib.llama_set_adapters_lora(context, array, len(pairs), (ctypes.c_float * len(pairs))(*(s for _, s in pairs)))
    rows = []
    for token in tokens:
        batch = lib.llama_batch_get_one((ctypes.c_int32 * 1)(token), 1)
        assert lib.llama_decode(context, batch) == 0
        n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        rows.append(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), shape=(n_vocab,)).copy())
    lib.llama_free(context)
    lib.llama_model_free(model)
    return np.stack(rows)


SPECS = ["", "a", "b", "a b", "a:0.5", "c", "a b c:-0.7"]


@pytest.fixture
def model(files):
    return LoadedModel(EngineSpec(str(files / "base.gguf"), n_ctx=N_CTX, n_threads=1, n_parallel=8, n_guess=0))


def job(model, files, job_id, spec, prompt=PROMPT, **more):
    return Job(
        job_id,
        prompt,
        SamplingParams(temperature=0),
        max_tokens=12,
        n_logprobs=3,
        ignore_eos=True,
        adapters=model.adapters(request(files, spec)),
        **more,
    )


def request(files, spec):
    return GenerateRequest(prompt="", adapters=choices(files, spec))


def logprobs_of(events, job_id):
    return [item for i, event in events if i == job_id for item in getattr(event, "logprobs", ())]


def check(files, spec, events, job_id, prompt=PROMPT):
    """Every token is the plain context's own choice, and as likely as it is there.

    The KV is kept in 16 bits, and who else is in the batch changes its last bits.
    """
    got = logprobs_of(events, job_id)
    assert len(got) == 12
    logits = plain_logits(files, spec, [*prompt, *(item.token for item in got[:-1])])[len(prompt) - 1 :]
    logits = logits.astype(np.float64)
    wanted = (
        logits
        - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - (logits.max(axis=1, keepdims=True))
    )
    for row, item in zip(wanted, got, strict=True):
        assert row[item.token] == pytest.approx(row.max(), abs=0.01)  # greedy; a near tie may go either way
        assert row[item.token] == pytest.approx(item.logprob, abs=0.01)


def test_all_at_once_each_is_as_in_a_context_of_its_own(model, files):
    for round_ in range(2):  # the second round begins with cached prefixes
        for i, spec in enumerate(SPECS):
            model.scheduler.submit(job(model, files, 10 * round_ + i, spec))
        events = run(model.scheduler)
        assert len(finished(events)) == len(SPECS)
        for i, spec in enumerate(SPECS):
            check(files, spec, events, 10 * round_ + i)
            assert finished(events)[10 * round_ + i].usage.n_cached == round_ * (len(PROMPT) - 1), spec


def test_interleaved_ones_do_not_disturb_each_other(model, files):
    events = []
    for i, spec in enumerate([*SPECS, *reversed(SPECS)]):
        model.scheduler.submit(job(model, files, i, spec))
        for _ in range(3):
            events += model.scheduler.step()
    events += run(model.scheduler)
    for i, spec in enumerate([*SPECS, *reversed(SPECS)]):
        check(files, spec, events, i)


def test_the_adapters_have_an_effect(files):
    rows = [plain_logits(files, spec, PROMPT)[-1] for spec in SPECS]
    for i, one in enumerate(rows):
        assert all(np.abs(one - other).max() > 0.5 for other in rows[:i])


def test_order_and_adapters_of_scale_0_do_not_matter(model, files):
    def adapters(spec):
        return model.adapters(request(files, spec))

    assert adapters("a b") == adapters("b a")
    assert adapters("a:0 b") == adapters("b")
    assert adapters("a:0") == ()


def test_a_changed_file_is_another_adapter(model, files):
    path = write_tiny_lora(files / "changing.gguf", files / "base.gguf", seed=1)
    before = model.adapters(request(files, "changing"))
    model.scheduler.submit(job(model, files, 0, "changing"))
    check(files, "changing", run(model.scheduler), 0)
    path.unlink()
    write_tiny_lora(path, files / "base.gguf", seed=9)
    assert model.adapters(request(files, "changing")) != before
    model.scheduler.submit(job(model, files, 1, "changing"))
    check(files, "changing", run(model.scheduler), 1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"names": ("attn_q",), "architecture": "qwen2"}, "for qwen2 models"),
        ({"names": (), "architecture": "llama"}, "nothing that changes"),
        ({"extra": {"adapter.alora.invocation_tokens": [1, 2]}}, "aLoRA"),
    ],
)
def test_a_wrong_adapter_is_refused(files, tmp_path, fields, told):
    write_tiny_lora(tmp_path / "wrong.gguf", files / "base.gguf", **fields)
    with pytest.raises(RequestError, match=told) as caught:
        AdapterChecker(files / "base.gguf").check([(str(tmp_path / "wrong.gguf"), 1.0)])
    assert caught.value.param == "adapters"


@pytest.mark.parametrize("other", [{"n_embd": 64}, {"n_ff": 96}, {"n_layer": 3}])
def test_an_adapter_of_another_model_is_refused(files, tmp_path, other):
    base = write_tiny_gguf(tmp_path / "other.gguf", **other)
    write_tiny_lora(tmp_path / "wrong.gguf", base)
    with pytest.raises(RequestError, match=r"another size|lacks"):
        AdapterChecker(files / "base.gguf").check([(str(tmp_path / "wrong.gguf"), 1.0)])


def test_what_is_no_adapter_is_refused(files, tmp_path):
    checker = AdapterChecker(files / "base.gguf")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "text", files / "base.gguf", tmp_path / "missing"):
        with pytest.raises(RequestError):
            checker.check([(str(path), 1.0)])
    with pytest.raises(RequestError, match="twice"):
        checker.check([(str(files / "a.gguf"), 1.0), (str(files / "a.gguf"), 0.5)])


@pytest.fixture
def loaded(files):
    model = LlamaModel(str(files / "base.gguf"))
    context = LlamaContext(model, n_ctx=256, n_batch=64, n_seq=2, n_threads=1)
    yield lambda **limits: LoadedAdapters(model, context, **limits)
    context.close()
    model.close()


def test_each_file_is_loaded_once_and_the_oldest_is_let_go(files, loaded, monkeypatch):
    read, freed = [], []
    init, free = lib.llama_adapter_lora_init, lib.llama_adapter_lora_free
    monkeypatch.setattr(lib, "llama_adapter_lora_init", lambda m, path: read.append(path[-6:-5]) or init(m, path))
    monkeypatch.setattr(lib, "llama_adapter_lora_free", lambda handle: freed.append(handle) or free(handle))
    checker, adapters = AdapterChecker(files / "base.gguf"), loaded(most=2)
    for spec in ("a", "b", "a:0.5", "c", "a", "b"):
        wanted = checker.check(choices(files, spec))
        adapters.load(wanted, ())
        adapters.use(wanted)
    assert read == [b"a", b"b", b"c", b"b"]
    assert len(freed) == 2, "b for c, then c for b"


def test_what_others_use_is_not_let_go(files, loaded):
    checker, adapters = AdapterChecker(files / "base.gguf"), loaded(most=2)
    a, b, c = (checker.check(choices(files, spec)) for spec in "abc")
    adapters.load(a, ())
    adapters.load(b, a)
    with pytest.raises(EngineBusyError, match="adapters"):
        adapters.load(c, (*a, *b))
    adapters.load(c, a)
    adapters.use((*a, *c))
    adapters.use(())


def test_one_request_may_need_more_than_is_kept(files, loaded):
    wanted = AdapterChecker(files / "base.gguf").check(choices(files, "a b c"))
    adapters = loaded(most_bytes=1)
    adapters.load(wanted, ())
    adapters.use(wanted)
    with pytest.raises(EngineBusyError):
        adapters.load(wanted[:1], wanted[1:])


def test_llama_cpps_own_refusal_is_an_error_of_the_request(files, loaded, tmp_path):
    adapters = loaded()
    [adapter] = AdapterChecker(files / "base.gguf").check(choices(files, "a"))
    write_tiny_lora(tmp_path / "other.gguf", files / "base.gguf", architecture="gemma")
    with pytest.raises(RequestError, match="cannot load"):
        adapters.load((type(adapter)(str(tmp_path / "other.gguf"), "x", 1),), ())
