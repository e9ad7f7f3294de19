"""What cannot be converted is refused by name, and nothing is guessed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import InvalidModelError
from quant.tokenizers.pretokenizers import named, pre_tokenizer_json
from quant.tokenizers.to_gguf import gguf_tokenizer
from quant.tokenizers.to_hf import write_hf_tokenizer
from tests.fakes.tokenizers import byte_level, sentencepiece, wordpiece


def edit(directory: Path, change: Callable[[dict[str, Any]], None], name: str = "tokenizer.json") -> Path:
    path = directory / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return directory


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return byte_level(tmp_path / "source", pre_tokenizer_json(named("gpt-2")))


def other_expression(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}+|\S"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True},
        ],
    }


def test_an_unknown_pre_tokenizer_is_refused_with_its_hash(gpt2: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"not known \(hash [0-9a-f]{64}\)"):
        gguf_tokenizer(edit(gpt2, other_expression))


def test_an_unknown_normalizer_is_refused(gpt2: Path) -> None:
    with pytest.raises(InvalidModelError, match="not known"):
        gguf_tokenizer(edit(gpt2, lambda content: content.update(normalizer={"type": "Lowercase"})))


def test_a_known_expression_that_takes_whole_tokens_is_told_apart(gpt2: Path, tmp_path: Path) -> None:
    source = byte_level(tmp_path / "other", pre_tokenizer_json(named("dbrx")), ignore_merges=False)
    assert gguf_tokenizer(source)["tokenizer.ggml.pre"] == "dbrx"
    with_whole = edit(source, lambda content: content["model"].update(ignore_merges=True))
    assert gguf_tokenizer(with_whole)["tokenizer.ggml.pre"] == "llama-bpe"


def test_other_kinds_of_models_are_refused_by_name(gpt2: Path) -> None:
    edit(gpt2, lambda content: content.update(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]]}))
    with pytest.raises(InvalidModelError, match="Unigram"):
        gguf_tokenizer(gpt2)


def test_a_unigram_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2 as format_of

    source = sentencepiece(tmp_path / "source")
    model = format_of.ModelProto()
    model.ParseFromString((source / "tokenizer.model").read_bytes())
    model.trainer_spec.model_type = 1
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelError, match="not a BPE model"):
        gguf_tokenizer(source)
    (source / "tokenizer.model").write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidModelError, match=r"tokenizer\.model cannot be read"):
        gguf_tokenizer(source)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="has no tokenizer"):
        gguf_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"model": []}',
        '{"model": {"type": "WordPiece", "vocab": {"a": "x"}}}',
        '{"model": {"type": "BPE"}}',
        '{"added_tokens": [3]}',
    ],
)
def test_damaged_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidModelError):
        gguf_tokenizer(tmp_path)


def test_a_vocabulary_larger_than_the_model_is_refused(gpt2: Path) -> None:
    edit(gpt2, lambda content: content.update(vocab_size=100), "config.json")
    with pytest.raises(InvalidModelError, match="room for 100"):
        gguf_tokenizer(gpt2)


def test_an_impossible_number_of_tokens_is_refused_before_they_are_laid_out(gpt2: Path) -> None:
    edit(gpt2, lambda content: content.update(vocab_size=10**12), "config.json")
    with pytest.raises(InvalidModelError, match="claims 1000000000000 tokens"):
        gguf_tokenizer(gpt2)


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    source = wordpiece(tmp_path / "source")
    # "##▁x" loses its mark, and "x" gains one: both become "▁x".
    edit(source, lambda content: content["model"]["vocab"].update({"zz": 5000, "##▁zz": 5001}))
    edit(source, lambda content: content.update(vocab_size=5002), "config.json")
    with pytest.raises(InvalidModelError, match="are both"):
        gguf_tokenizer(source)


def test_files_of_two_models_are_refused(tmp_path: Path) -> None:
    source = sentencepiece(tmp_path / "source")
    (back := tmp_path / "back").mkdir()
    write_hf_tokenizer(gguf_tokenizer(source), back, "llama")
    edit(back, lambda content: content["model"]["vocab"].update({"▁the": 1000, "the": 999}))
    (back / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    with pytest.raises(InvalidModelError, match="disagree"):
        gguf_tokenizer(back)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "no-such"}, "'no-such'"),
        ({"tokenizer.ggml.pre": "falcon3"}, "'falcon3'"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'"),
        ({"tokenizer.ggml.tokens": []}, "no complete vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "no complete vocabulary"),
        ({"tokenizer.ggml.merges": []}, "no merges"),
        ({"tokenizer.ggml.merges": ["one"]}, "not a pair"),
        ({"tokenizer.ggml.model": "llama"}, "no scores"),
        ({"tokenizer.ggml.merges": [1, 2]}, "no known form"),
        ({"tokenizer.ggml.token_type": ["x"] * 5000}, "no known form"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 10**6}, "no known form"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": "x"}, "no known form"),
    ],
)
def test_a_gguf_file_that_cannot_be_converted(change: dict[str, Any], message: str, gpt2: Path, tmp_path: Path) -> None:
    (back := tmp_path / "back").mkdir()
    with pytest.raises(InvalidModelError, match=message):
        write_hf_tokenizer(gguf_tokenizer(gpt2) | change, back, "llama")
    assert not list(back.iterdir())
