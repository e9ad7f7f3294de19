"""Token ids, bytes and special tokens of the tokenizers that model directories hold."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from localllm.errors import EngineLoadError
from serve.engine.mlx_vocabulary import Vocabulary, load_vocabulary
from tests.fakes.mlx_models import TEMPLATE, make_model, make_tokenizer

TEXTS = ["the cat sat", "  two  spaces ", "Zürich naïve 漢字 🙂", "line\nline\ttab", ""]


@pytest.fixture
def vocabulary():
    return Vocabulary(make_tokenizer(), bos="<|begin|>", eos="<|im_end|>")


def sentencepiece():
    """As Llama 2's: spaces as U+2581, bytes for what the vocabulary lacks."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehist", "▁t", "▁th"]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "t"), ("▁t", "h")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def text_of(vocabulary, tokens):
    return b"".join(map(vocabulary.token_text, tokens)).decode()


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_make_the_text(vocabulary, text):
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=True)
    assert text_of(vocabulary, tokens) == text
    assert b"".join(map(vocabulary.piece, tokens)).decode() == text


def test_a_character_of_several_tokens_comes_in_parts(vocabulary):
    pieces = [vocabulary.piece(token) for token in vocabulary.tokenize("🙂", add_special=False, parse_special=True)]
    assert len(pieces) == 4
    assert b"".join(pieces) == "🙂".encode()


def test_sentencepiece_spaces_and_bytes():
    vocabulary = Vocabulary(sentencepiece(), bos="<s>", eos="</s>")
    tokens = vocabulary.tokenize("this é", add_special=True, parse_special=True)
    assert [vocabulary.token_text(token) for token in tokens[:3]] == [b"<s>", b" th", b"i"]
    assert text_of(vocabulary, tokens) == "<s> this é"


def test_bos_goes_before_a_text_and_eos_not_behind_it():
    vocabulary = Vocabulary(sentencepiece(), bos="<s>", eos="</s>")
    bare = vocabulary.tokenize("this", add_special=False, parse_special=True)
    assert vocabulary.tokenize("this", add_special=True, parse_special=True) == [1, *bare]
    assert vocabulary.tokenize("", add_special=True, parse_special=True)[0] == 1


def test_special_tokens_are_found_shown_to_nobody_and_avoided(vocabulary):
    text = "a<|im_end|>b"
    assert vocabulary.find_specials(text) == ["<|im_end|>"]
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=True)
    assert [vocabulary.piece(token) for token in tokens] == [b"a", b"", b"b"]
    assert vocabulary.token_text(tokens[1]) == b"<|im_end|>"
    plain = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert tokens[1] not in plain
    assert text_of(vocabulary, plain) == text


def test_an_added_token_that_is_not_special_stays_one(vocabulary):
    [tool_call] = vocabulary.tokenize("<tool_call>", add_special=False, parse_special=True)
    assert vocabulary.piece(tool_call) == b"<tool_call>"
    assert tool_call in vocabulary.tokenize("<|im_end|><tool_call>", add_special=False, parse_special=False)


def test_what_looks_special_is(vocabulary):
    tokenizer = make_tokenizer()
    marks = ["<\uff5cUser\uff5c>", "<|User|>"]
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in marks])
    vocabulary = Vocabulary(tokenizer)
    for mark in marks:
        assert vocabulary.find_specials(f"x{mark}y") == [mark]
        [token] = vocabulary.tokenize(mark, add_special=False, parse_special=True)
        assert vocabulary.piece(token) == b""
        assert token not in vocabulary.tokenize(mark, add_special=False, parse_special=False)


def test_a_special_text_that_is_an_ordinary_piece_too_is_spelt():
    pieces = [("<unk>", 0.0), ("<s>", -1.0), *((letter, -5.0) for letter in "<s>ab")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    vocabulary = Vocabulary(tokenizer)
    assert 1 not in vocabulary.tokenize("a<s>b", add_special=False, parse_special=False)
    assert 1 in vocabulary.tokenize("a<s>b", add_special=False, parse_special=True)


def test_ends_are_those_given_eos_and_the_usual_ones():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<|eot_id|>", "<|other|>"])
    vocabulary = Vocabulary(tokenizer, eos="<|begin|>", end_tokens=[7])
    texts = {vocabulary.token_text(token).decode() for token in vocabulary.end_tokens - {7}}
    assert texts == {"<|begin|>", "<|im_end|>", "<|eot_id|>"}
    assert 7 in vocabulary.end_tokens
    assert vocabulary.piece(7) == b""


def test_ids_and_letters_that_are_none(vocabulary):
    assert vocabulary.token_text(100_000) == b""
    tokens = vocabulary.tokenize("a\ud800b", add_special=False, parse_special=True)
    assert text_of(vocabulary, tokens) == "a?b"


def test_a_directory_tells_its_template_and_its_ends(tmp_path):
    vocabulary = load_vocabulary(make_model(tmp_path / "tiny"), [])
    assert vocabulary.chat_template == TEMPLATE
    assert (vocabulary.bos, vocabulary.eos) == ("<|begin|>", "<|im_end|>")
    assert vocabulary.adds_bos


def test_a_template_of_its_own_file(tmp_path):
    path = make_model(tmp_path / "tiny", template=None)
    assert load_vocabulary(path, []).chat_template is None
    (path / "chat_template.jinja").write_text("{{ messages }}")
    assert load_vocabulary(path, []).chat_template == "{{ messages }}"


def test_the_default_of_several_templates(tmp_path):
    path = make_model(tmp_path / "tiny", template=None)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_vocabulary(path, []).chat_template == "d"


def test_no_tokenizer(tmp_path):
    path = make_model(tmp_path / "tiny")
    (path / "tokenizer.json").unlink()
    with pytest.raises(EngineLoadError, match="tokenizer"):
        load_vocabulary(path, [])
