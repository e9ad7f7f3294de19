"""Special tokens, chat templates and what is added around a prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quant.tokenizers.pretokenizers import named, pre_tokenizer_json
from quant.tokenizers.to_gguf import gguf_tokenizer
from quant.tokenizers.to_hf import write_hf_tokenizer
from quant.tokenizers.token_types import TokenType
from tests.fakes.tokenizers import byte_level, sentencepiece, wordpiece


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return byte_level(tmp_path / "source", pre_tokenizer_json(named("gpt-2")))


def put(directory: Path, name: str, change: dict[str, Any]) -> None:
    path = directory / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | change), encoding="utf-8")


def written(metadata: dict[str, Any], tmp_path: Path, architecture: str = "llama") -> Path:
    (back := tmp_path / "back").mkdir()
    write_hf_tokenizer(metadata, back, architecture)
    return back


def read(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text(encoding="utf-8"))


def test_a_template_file_is_kept_to_the_byte(source: Path, tmp_path: Path) -> None:
    template = "{{ x }}\n\n  {%- if tools %}\n\t«€ñ»{% endif %}"
    (source / "chat_template.jinja").write_bytes(template.encode())
    metadata = gguf_tokenizer(source)
    assert metadata["tokenizer.chat_template"] == template  # it overrides the one in tokenizer_config.json
    back = written(metadata, tmp_path)
    assert (back / "chat_template.jinja").read_bytes() == template.encode()
    assert "chat_template" not in read(back, "tokenizer_config.json")


@pytest.mark.parametrize("files", [True, False], ids=["files", "configuration"])
def test_named_templates_come_back(files: bool, source: Path, tmp_path: Path) -> None:
    templates = {"default": "{{ 1 }}\n", "tool_use": "{{ 2 }}", "rag": "{{ 3 }}"}
    if files:
        (source / "additional_chat_templates").mkdir()
        (source / "chat_template.jinja").write_text(templates["default"])
        for name in ("tool_use", "rag"):
            (source / "additional_chat_templates" / f"{name}.jinja").write_text(templates[name])
    else:
        rows = [{"name": name, "template": text} for name, text in templates.items()]
        put(source, "tokenizer_config.json", {"chat_template": rows})
    metadata = gguf_tokenizer(source)
    assert metadata["tokenizer.chat_template"] == "{{ 1 }}\n"
    assert metadata["tokenizer.chat_template.rag"] == "{{ 3 }}"
    assert metadata["tokenizer.chat_templates"] == ["rag", "tool_use"]
    back = written(metadata, tmp_path)
    again = gguf_tokenizer(back)
    assert {key: again[key] for key in metadata if "template" in key} == {
        key: metadata[key] for key in metadata if "template" in key
    }


def test_a_template_name_leads_nowhere_else(source: Path, tmp_path: Path) -> None:
    metadata = gguf_tokenizer(source) | {
        "tokenizer.chat_template.../../x": "evil",
        "tokenizer.chat_template": "{{ 1 }}",
    }
    back = written(metadata, tmp_path)
    assert [path.name for path in back.rglob("*.jinja")] == ["chat_template.jinja"]
    assert not (tmp_path / "x.jinja").exists()


def test_several_ends_of_an_answer(source: Path, tmp_path: Path) -> None:
    think = read(source, "tokenizer.json")["added_tokens"][-1]
    put(source, "generation_config.json", {"eos_token_id": [2, 0, think["id"]]})
    metadata = gguf_tokenizer(source)
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    # <|endoftext|> needs no key: llama.cpp stops at it by its text.
    assert metadata["tokenizer.ggml.eot_token_id"] == think["id"]
    assert "tokenizer.ggml.eom_token_id" not in metadata
    generation = read(written(metadata, tmp_path), "generation_config.json")
    assert generation["eos_token_id"] == [2, think["id"], 0]


def test_what_is_said_in_the_configuration_decides_what_is_added(source: Path, tmp_path: Path) -> None:
    assert gguf_tokenizer(source)["tokenizer.ggml.add_bos_token"] is False
    put(source, "tokenizer_config.json", {"add_bos_token": True, "add_eos_token": True})
    metadata = gguf_tokenizer(source)
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    back = Tokenizer.from_file(str(written(metadata, tmp_path) / "tokenizer.json"))
    assert back.encode("Hi").ids[0] == 0
    assert back.encode("Hi").ids[-1] == 2


def test_rows_without_a_token_are_filled_up_and_left_out_again(source: Path, tmp_path: Path) -> None:
    put(source, "config.json", {"vocab_size": 750})
    metadata = gguf_tokenizer(source)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert (len(tokens), tokens[-1], types[-1]) == (750, "[PAD749]", TokenType.UNUSED)
    assert "[PAD749]" not in read(written(metadata, tmp_path), "tokenizer.json")["model"]["vocab"]


def test_added_tokens_past_the_embedding_are_left_out(source: Path) -> None:
    content = read(source, "tokenizer.json")
    content["added_tokens"].append(dict(content["added_tokens"][-1], id=800, content="<image>"))
    put(source, "tokenizer.json", content)
    assert "<image>" not in gguf_tokenizer(source)["tokenizer.ggml.tokens"]


def test_added_tokens_that_look_special_are_control_tokens(source: Path) -> None:
    content = read(source, "tokenizer.json")
    content["added_tokens"][-1]["content"] = "<|tool|>"
    put(source, "tokenizer.json", content)
    metadata = gguf_tokenizer(source)
    kinds = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<|tool|>"] == TokenType.CONTROL
    assert kinds["    "] == TokenType.USER_DEFINED


def test_sentencepiece_types_and_spaces(tmp_path: Path) -> None:
    metadata = gguf_tokenizer(sentencepiece(tmp_path / "source", space_prefix=False))
    kinds = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"]) == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
    assert kinds["  "] == kinds["\n\n"] == kinds["<start>"] == TokenType.USER_DEFINED
    assert metadata["tokenizer.ggml.add_space_prefix"] is False
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_tokens_of_phi3_swallow_the_white_space_after_them(tmp_path: Path) -> None:
    metadata = gguf_tokenizer(sentencepiece(tmp_path / "source"))
    added = {row["content"]: row for row in read(written(metadata, tmp_path, "phi3"), "tokenizer.json")["added_tokens"]}
    assert (added["</s>"]["rstrip"], added["<s>"]["rstrip"], added["<start>"]["rstrip"]) == (True, False, True)


def test_bert_has_the_keys_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    source = wordpiece(tmp_path / "source", lowercase=False)
    put(source, "config.json", {"type_vocab_size": 2})
    metadata = gguf_tokenizer(source)
    assert metadata["tokenizer.ggml.token_type_count"] == 2
    assert metadata["tokenizer.ggml.normalizer.lowercase"] is False
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.seperator_token_id"]) == (2, 3)
    assert read(written(metadata, tmp_path, "bert"), "tokenizer_config.json")["cls_token"] == "[CLS]"
