"""Small tokenizers trained on the spot, and GGUF files that hold nothing but a vocabulary."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from quant.tensors.gguf_writer import write_gguf
from quant.tokenizers.sample import mixed_text

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}\r\n<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}\n\n"


def corpus() -> list[str]:
    """Texts to train on; random characters are left for the tests, as what the vocabulary does not know."""
    kinds = mixed_text(seed=1, n_random=200)
    return [text for kind, rows in kinds.items() if kind != "random characters" for text in rows]


def byte_level(
    directory: Path,
    pre_tokenizer: Mapping[str, Any],
    *,
    nfc: bool = False,
    ignore_merges: bool = False,
    bos: bool = False,
) -> Path:
    """Train a byte-level BPE tokenizer with the pre-tokenizer of a tokenizer.json; write it as a model's directory."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = dict(pre_tokenizer)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("<think>", normalized=False)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = ignore_merges
    config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "unk_token": None, "chat_template": TEMPLATE}
    return write_directory(directory, content, config, vocab_size=720)


def sentencepiece(directory: Path, *, space_prefix: bool = True) -> Path:
    """Train a SentencePiece BPE model with bytes for what it does not know; write it as a model's directory."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.split("\n") if line.strip()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=space_prefix,
        user_defined_symbols=["<start>"] if space_prefix else ["<start>", "▁▁", "▁▁▁", "\n\n"],
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
    return write_directory(directory, None, config, vocab_size=1210)


def wordpiece(directory: Path, *, lowercase: bool = True) -> Path:
    """Train a WordPiece tokenizer like BERT's; write it as a model's directory."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=900, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase} | {
        f"{role}_token": text for role, text in roles.items()
    }
    content = json.loads(tokenizer.to_str())
    return write_directory(directory, content, config, vocab_size=len(content["model"]["vocab"]))


def write_directory(
    directory: Path, content: Mapping[str, Any] | None, config: Mapping[str, Any], *, vocab_size: int
) -> Path:
    """Write a directory's tokenizer files and a config.json with its vocabulary's size."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {"tokenizer.json": content, "tokenizer_config.json": config, "config.json": {"vocab_size": vocab_size}}
    for name, value in files.items():
        if value is not None:
            (directory / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return directory


def write_vocabulary(path: Path, metadata: Mapping[str, Any], *, architecture: str = "llama") -> Path:
    """Write a GGUF file with ``metadata`` and no tensors."""
    general = {"general.architecture": architecture, "general.name": "tiny"}
    write_gguf(path, general | dict(metadata), [], on_tensor=lambda *_: None)
    return path
