"""A BERT of 60 kB in GGUF, to embed or, with a classifier's head, to rank documents; its weights are random."""

from pathlib import Path

import gguf
import numpy as np

_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
_WORDS = ("the", "cat", "dog", "sat", "on", "mat", "rose", "again")


def write_tiny_bert(
    path: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.RANK, n_embd: int = 32, n_ctx_train: int = 128
) -> Path:
    """Write a model that llama.cpp loads and runs; the same one every time.

    Args:
        path: Where to write.
        pooling: ``RANK`` adds a head of one class.
        n_embd: Width, in four heads.
        n_ctx_train: Tokens of the longest input.

    Returns:
        ``path``.
    """
    # As converters write a WordPiece vocabulary: beginnings of words are marked, and not what follows in them.
    tokens = [*_SPECIALS, *(f"▁{word}" for word in (*_WORDS, *_LETTERS)), *_LETTERS]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 2, 3, 3, 3, *[1] * (len(tokens) - len(_SPECIALS))])  # control, unknown, normal
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    for name, shape in _shapes(len(tokens), n_embd, n_ctx_train, ranks=pooling == gguf.PoolingType.RANK).items():
        writer.add_tensor(name, _values(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(n_vocab: int, n_embd: int, n_ctx_train: int, *, ranks: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, n_embd),
        "token_types.weight": (2, n_embd),
        "position_embd.weight": (n_ctx_train, n_embd),
        "token_embd_norm.weight": (n_embd,),
        "token_embd_norm.bias": (n_embd,),
    }
    for name, rows, columns in (
        ("attn_q", n_embd, n_embd),
        ("attn_k", n_embd, n_embd),
        ("attn_v", n_embd, n_embd),
        ("attn_output", n_embd, n_embd),
        ("ffn_up", 2 * n_embd, n_embd),
        ("ffn_down", n_embd, 2 * n_embd),
    ):
        shapes[f"blk.0.{name}.weight"] = (rows, columns)
        shapes[f"blk.0.{name}.bias"] = (rows,)
    for name in ("attn_output_norm", "layer_output_norm"):
        shapes[f"blk.0.{name}.weight"] = shapes[f"blk.0.{name}.bias"] = (n_embd,)
    head: dict[str, tuple[int, ...]] = {
        "cls.weight": (n_embd, n_embd),
        "cls.bias": (n_embd,),
        "cls.output.weight": (1, n_embd),
        "cls.output.bias": (1,),
    }
    return {**shapes, **(head if ranks else {})}


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    rng = np.random.default_rng(len(name) + sum(shape))
    return rng.normal(0.0, 0.3, shape).astype(np.float32)
