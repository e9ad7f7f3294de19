"""Embeddings and scores of tiny BERTs, in the engine's own process, beside llama.cpp's own results."""

import ctypes

import gguf
import llama_cpp
import numpy as np
import pytest

from localllm.errors import ContextLengthError, RequestError
from serve.engine.process import start_engine
from serve.engine.rerank_prompt import PairFormat, pair_prompts
from serve.engine.types import EngineSpec, GenerateRequest
from tests.fakes.bert_files import write_tiny_bert
from tests.fakes.gguf_files import write_tiny_gguf

QUERY = "the cat sat."
DOCUMENTS = ["the cat sat on the mat.", "the dog rose again!", "cat cat cat", "0123, a mat?"]
SEP, CLS = 3, 2


@pytest.fixture
async def start(tmp_path):
    engines = []

    async def started(path, **fields):
        spec = EngineSpec(path=str(path), n_threads=1, n_parallel=3, **fields)
        engines.append(await start_engine(spec, log_path=tmp_path / "engine.log"))
        return engines[-1]

    yield started
    for engine in engines:
        await engine.close()


class Own:
    """llama.cpp by its low-level functions, one input at a time."""

    def __init__(self, path, n_out):
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.embeddings, params.n_threads, params.n_threads_batch = True, 1, 1
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.n_out = n_out

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def words(self, text, special=False):
        vocab, raw = llama_cpp.llama_model_get_vocab(self.model), text.encode()
        tokens = (ctypes.c_int32 * 128)()
        n = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, 128, special, False)
        return list(tokens[:n])

    def run(self, tokens):
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        return np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(self.context, 0), (self.n_out,)).copy()


async def test_scores_are_llama_cpps_own(start, tmp_path):
    path = write_tiny_bert(tmp_path / "rank.gguf")
    engine = await start(path)
    scores = await engine.rerank(QUERY, DOCUMENTS)
    own = Own(path, 1)
    # As llama.cpp's server builds it for this vocabulary: no end of text, a separator between the two.
    pairs = [[CLS, *own.words(QUERY), SEP, *own.words(text)] for text in DOCUMENTS]
    wanted = [float(own.run(pair)[0]) for pair in pairs]
    own.close()
    np.testing.assert_allclose(scores.values, wanted, atol=1e-4)
    assert len(set(np.round(wanted, 3))) == len(DOCUMENTS), "the model must tell them apart"
    assert scores.n_tokens == sum(map(len, pairs))
    assert (await engine.rerank(QUERY, DOCUMENTS)).values == scores.values
    assert len((await engine.rerank(QUERY, DOCUMENTS * 40)).values) == 160


@pytest.mark.parametrize("pooling", [gguf.PoolingType.CLS, gguf.PoolingType.MEAN])
async def test_embeddings_follow_the_model_s_pooling(start, tmp_path, pooling):
    path = write_tiny_bert(tmp_path / "embed.gguf", pooling=pooling)
    engine = await start(path)
    got = await engine.embed([*DOCUMENTS, [CLS, 5, 6, SEP]])
    scores = await engine.rerank(QUERY, DOCUMENTS)
    own = Own(path, 32)
    wanted = [own.run(own.words(text, special=True)) for text in (*DOCUMENTS, QUERY)]
    own.close()
    wanted = [vector / np.linalg.norm(vector) for vector in wanted]
    np.testing.assert_allclose(got.vectors[:4], wanted[:4], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got.vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(scores.values, [wanted[4] @ vector for vector in wanted[:4]], atol=1e-4)


async def test_what_a_model_cannot_do_is_refused(start, tmp_path):
    ranks = await start(write_tiny_bert(tmp_path / "rank.gguf"))
    writes = await start(write_tiny_gguf(tmp_path / "text.gguf"), n_ctx=256)
    with pytest.raises(RequestError, match="makes no embeddings"):
        await ranks.embed(["the cat"])
    with pytest.raises(RequestError, match="cannot answer"):
        await anext(aiter(ranks.generate(GenerateRequest(prompt="the cat"))))
    with pytest.raises(RequestError, match="cannot rank"):
        await writes.rerank(QUERY, DOCUMENTS)
    with pytest.raises(ContextLengthError) as too_long:
        await ranks.rerank(QUERY, ["cat " * 200])
    with pytest.raises(RequestError, match="vocabulary"):
        await writes.embed([[10**6]])
    assert too_long.value.n_ctx == 128
    assert len((await ranks.rerank(QUERY, DOCUMENTS)).values) == 4, "it goes on"


async def test_embeddings_go_on_beside_a_generation(start, tmp_path):
    engine = await start(write_tiny_gguf(tmp_path / "text.gguf"), n_ctx=256)
    request = GenerateRequest(prompt="hello", max_tokens=200, ignore_eos=True)
    events = engine.generate(request)
    await anext(events)
    embedded = await engine.embed(["hello world"] * 30)
    assert len(embedded.vectors) == 30
    assert len([event async for event in events]) > 1


async def test_the_prompt_s_tokens_are_those_of_a_generation(start, tmp_path):
    engine = await start(write_tiny_gguf(tmp_path / "text.gguf"), n_ctx=256)
    request = GenerateRequest(messages=({"role": "user", "content": "hello world"},), max_tokens=1)
    started = await anext(engine.generate(request))
    tokens = await engine.prompt_tokens(request)
    assert len(tokens) == started.n_prompt
    assert await engine.detokenize(tokens) == "<s> user: hello world\nassistant: "
    with pytest.raises(RequestError, match="vocabulary"):
        await engine.prompt_tokens(GenerateRequest(prompt=(10**6,)))


class Letters:
    """A token a letter; ``<e>`` is special, token 0."""

    def tokenize(self, text, *, add_special, parse_special):
        pieces = text.split("<e>") if parse_special else [text]
        return [token for piece in pieces for token in (0, *map(ord, piece))][1:]

    def find_specials(self, text):
        return ["<e>"] if "<e>" in text else []


def test_a_template_takes_the_place_of_the_marks():
    pair_format = PairFormat((1,), (2,), (3,), "<e>{query}|{document}<e>")
    (tokens,) = pair_prompts(Letters(), pair_format, "{document}<e>", ["d"])
    text = "".join(chr(token) if token else "#" for token in tokens)
    assert text == "#{document}<e>|d#", "what the texts hold is neither a place nor a special token"


def test_marks_stand_around_both():
    pairs = pair_prompts(Letters(), PairFormat((1,), (2, 3), (4,)), "<e>", ["a", "b"])
    assert list(pairs) == [[1, 60, 101, 62, 2, 3, 97, 4], [1, 60, 101, 62, 2, 3, 98, 4]]
