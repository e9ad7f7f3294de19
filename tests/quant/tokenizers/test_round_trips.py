"""Every kind of tokenizer, there and back: llama.cpp, the source and what is written back give the same ids."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from quant.tensors.gguf_reader import read_metadata
from quant.tokenizers.check import LlamaVocabulary, check_tokenizer
from quant.tokenizers.deviations import CASE, HANGUL, LONG_WORD, MARKS, NFC, SPACES, TABLES
from quant.tokenizers.pretokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer_json
from quant.tokenizers.sample import mixed_text
from quant.tokenizers.to_gguf import gguf_tokenizer
from quant.tokenizers.to_hf import write_hf_tokenizer
from tests.fakes.tokenizers import SPECIAL, TEMPLATE, byte_level, sentencepiece, wordpiece, write_vocabulary

KNOWN = [pre for pre in PRE_TOKENIZERS if pre.steps]


def there_and_back(source: Path, tmp_path: Path, architecture: str = "llama") -> tuple[Path, Path]:
    """The GGUF file of ``source``'s tokenizer, and the directory made from that."""
    metadata = gguf_tokenizer(source)
    path = write_vocabulary(tmp_path / "vocabulary.gguf", metadata, architecture=architecture)
    (back := tmp_path / "back").mkdir()
    write_hf_tokenizer({"general.architecture": architecture} | metadata, back, architecture)
    return path, back


@pytest.mark.parametrize("pre", KNOWN, ids=lambda pre: pre.name)
def test_byte_level_bpe_keeps_every_id(pre: PreTokenizer, tmp_path: Path) -> None:
    source = byte_level(
        tmp_path / "source",
        pre_tokenizer_json(pre),
        nfc=pre.nfc,
        ignore_merges=pre.ignore_merges,
        bos=pre.adds_bos,
    )
    path, back = there_and_back(source, tmp_path)
    metadata = gguf_tokenizer(source)
    same = [each.name for each in KNOWN if (each.steps, each.nfc) == (pre.steps, pre.nfc)]
    assert metadata["tokenizer.ggml.pre"] in same
    assert metadata["tokenizer.ggml.add_bos_token"] is pre.adds_bos
    known = {NFC} if pre.nfc else set()
    if pre.name in ("tekken", "gpt-4o", "llama4"):
        known = {CASE}
    for directory in (source, back):
        check = check_tokenizer(path, directory)
        assert check.passed, (check.different, check.example)
        assert set(check.explained) <= known
    first, second = (Tokenizer.from_file(str(where / "tokenizer.json")) for where in (source, back))
    for rows in mixed_text(SPECIAL).values():
        for text in rows:
            assert first.encode(text).ids == second.encode(text).ids, text
    again = gguf_tokenizer(back)
    for key in ("tokens", "token_type", "merges", "pre", "bos_token_id", "eos_token_id"):
        was, now = metadata[f"tokenizer.ggml.{key}"], again[f"tokenizer.ggml.{key}"]
        # There is no config.json here: the rows that fill up are not written back.
        assert now == (was[: len(now)] if isinstance(was, list) else was), key


@pytest.mark.parametrize("space_prefix", [True, False], ids=["llama", "gemma"])
def test_sentencepiece_keeps_every_id(space_prefix: bool, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    source = sentencepiece(tmp_path / "source", space_prefix=space_prefix)
    path, back = there_and_back(source, tmp_path)
    check = check_tokenizer(path, back)
    assert check.passed, (check.different, check.example)
    assert not check.explained
    reference = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    with LlamaVocabulary(path) as vocabulary:
        for rows in mixed_text().values():
            for text in rows:
                assert vocabulary.encode(text) == reference.encode(text), text


@pytest.mark.parametrize("space_prefix", [True, False], ids=["llama", "gemma"])
def test_scores_are_rebuilt_from_merges(space_prefix: bool, tmp_path: Path) -> None:
    source = sentencepiece(tmp_path / "source", space_prefix=space_prefix)
    _, back = there_and_back(source, tmp_path)
    (tmp_path / "second").mkdir()
    path, again = there_and_back(back, tmp_path / "second")
    assert check_tokenizer(path, back).passed
    assert check_tokenizer(path, again).passed
    first, second = (json.loads((where / "tokenizer.json").read_text(encoding="utf-8")) for where in (back, again))
    assert first["model"]["merges"] == second["model"]["merges"]
    assert first["normalizer"] == second["normalizer"]


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_wordpiece_keeps_every_id(lowercase: bool, tmp_path: Path) -> None:
    source = wordpiece(tmp_path / "source", lowercase=lowercase)
    path, back = there_and_back(source, tmp_path, "bert")
    for directory in (source, back):
        check = check_tokenizer(path, directory)
        assert check.passed, (check.different, check.example)
        assert set(check.explained) <= {HANGUL, MARKS, SPACES, TABLES, LONG_WORD}
    first, second = (Tokenizer.from_file(str(where / "tokenizer.json")) for where in (source, back))
    for rows in mixed_text().values():
        for text in rows:
            assert first.encode(text, "pair").ids == second.encode(text, "pair").ids
            assert first.encode(text, "pair").type_ids == second.encode(text, "pair").type_ids


def test_wordpiece_from_vocab_txt_equals_that_from_tokenizer_json(tmp_path: Path) -> None:
    source = wordpiece(tmp_path / "source")
    whole = gguf_tokenizer(source)
    vocab = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (source / "vocab.txt").write_text("".join(f"{text}\n" for text in sorted(vocab, key=vocab.get)), encoding="utf-8")
    (source / "tokenizer.json").unlink()
    assert gguf_tokenizer(source) == whole


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_transformers_and_mlx_load_what_is_written(kind: str, tmp_path: Path) -> None:
    from mlx_lm.tokenizer_utils import load

    if kind == "gpt2":
        pre = next(pre for pre in KNOWN if pre.name == "qwen2")
        source = byte_level(tmp_path / "source", pre_tokenizer_json(pre), nfc=True)
    else:
        source = sentencepiece(tmp_path / "source") if kind == "llama" else wordpiece(tmp_path / "source")
    path, back = there_and_back(source, tmp_path, "bert" if kind == "bert" else "llama")
    model_type = {"gpt2": "qwen2", "llama": "llama", "bert": "bert"}[kind]
    (back / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = load(back)
    with LlamaVocabulary(path) as vocabulary:
        for text in (*mixed_text()["languages"][:1], *mixed_text()["code"], "<|im_end|> x"):
            assert loaded.encode(text, add_special_tokens=True) == vocabulary.encode(text, add_special=True), text
    if kind == "gpt2":
        assert loaded.chat_template == TEMPLATE
        assert loaded.eos_token == SPECIAL[2]
        assert loaded.decode(loaded.encode("Ein  Bäcker, 12 €")) == "Ein  Bäcker, 12 €"


@pytest.mark.model
def test_the_starters_tokenizer_is_rebuilt(starter_path: Path, tmp_path: Path) -> None:
    metadata = read_metadata(starter_path)
    write_hf_tokenizer(metadata, tmp_path, "llama")
    check = check_tokenizer(starter_path, tmp_path, n_random=9000)
    assert check.n_bytes > 1_000_000
    assert (check.different, check.explained) == ({}, {})
    again = gguf_tokenizer(tmp_path)
    assert again["tokenizer.ggml.pre"] == "smollm"
    for key in (
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.chat_template",
    ):
        assert again[key] == metadata[key], key
