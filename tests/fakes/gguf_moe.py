"""A tiny mixture-of-experts GGUF file that llama.cpp runs."""

from pathlib import Path

import gguf
import numpy as np

from tests.fakes.gguf_files import _WORDS


def write_tiny_moe(
    path: Path, *, seed: int = 0, n_embd: int = 64, n_ff: int = 32, n_expert: int = 4, n_used: int = 2, n_layer: int = 2
) -> Path:
    """Write a Mixtral-like model of about 300 kB with random weights, in F32.

    Args:
        path: Where to write.
        seed: Of the weights.
        n_embd: Width.
        n_ff: Of an expert.
        n_expert: Experts in a layer.
        n_used: Of them for each token.
        n_layer: Layers.

    Returns:
        ``path``.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_WORDS]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_expert_count(n_expert)
    writer.add_expert_used_count(n_used)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(_WORDS)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(seed)

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32))

    matrix("token_embd.weight", len(tokens), n_embd)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(n_embd, np.float32))
        matrix(f"{block}.attn_q.weight", n_embd, n_embd)
        matrix(f"{block}.attn_k.weight", n_embd // 2, n_embd)
        matrix(f"{block}.attn_v.weight", n_embd // 2, n_embd)
        matrix(f"{block}.attn_output.weight", n_embd, n_embd)
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(n_embd, np.float32))
        matrix(f"{block}.ffn_gate_inp.weight", n_expert, n_embd)
        matrix(f"{block}.ffn_gate_exps.weight", n_expert, n_ff, n_embd)
        matrix(f"{block}.ffn_up_exps.weight", n_expert, n_ff, n_embd)
        matrix(f"{block}.ffn_down_exps.weight", n_expert, n_embd, n_ff)
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    matrix("output.weight", len(tokens), n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
