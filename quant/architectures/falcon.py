"""Falcon 7B and 40B (not Falcon H1, nor Falcon 3, which is Llama)."""

from typing import Any

from localllm.errors import InvalidModelError
from quant.architectures.family import Config, Family, Field, Metadata, Rule, Transform
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import TensorSource

_HEADS = Field("num_attention_heads", "attention.head_count", also=("n_head",))


def key_value_heads(config: Config) -> int:
    """How many heads of keys and values Falcon has, which it says in three ways."""
    if config.get("new_decoder_architecture"):
        return int(config.get("num_kv_heads") or config.get("n_head_kv") or config[_HEADS.config])
    if config.get("multi_query", True):
        return 1
    return int(config.get("num_attention_heads") or config["n_head"])


def _to_metadata(config: Config) -> dict[str, MetadataValue]:
    width = int(config["hidden_size"])
    if config.get("new_decoder_architecture") and config.get("num_ln_in_parallel_attn", 2) == 1:
        raise InvalidModelError("A Falcon with one norm for two branches cannot be converted (Falcon 11B).")
    return {
        "attention.head_count_kv": key_value_heads(config),
        "feed_forward_length": int(config.get("ffn_hidden_size") or 4 * width),
        "tensor_data_layout": "jploski",
    }


def _to_config(metadata: Metadata, source: TensorSource) -> dict[str, Any]:
    heads = metadata.get("falcon.attention.head_count_kv", 1)
    newer = "blk.0.attn_norm_2.weight" in source.tensors
    return {
        "num_kv_heads": heads,
        "ffn_hidden_size": metadata["falcon.feed_forward_length"],
        "multi_query": heads == 1 or newer,
        "new_decoder_architecture": newer,
    }


FALCON = Family(
    architecture="falcon",
    model_types=("falcon", "RefinedWeb", "RefinedWebModel"),
    hf_class="FalconForCausalLM",
    fields=(
        Field("max_position_embeddings", "context_length", default=2048),
        Field("hidden_size", "embedding_length"),
        Field("num_hidden_layers", "block_count", also=("n_layer",)),
        _HEADS,
        Field("layer_norm_epsilon", "attention.layer_norm_epsilon", float, 1e-5),
        Field("rope_theta", "rope.freq_base", float, 10000.0),
    ),
    rules=(
        Rule("transformer.word_embeddings", "token_embd"),
        # Falcon 40B norms its two branches apart. GGUF's first norm is that of the feed-forward there.
        Rule("transformer.h.{}.input_layernorm", "blk.{}.attn_norm", only_if="-new_decoder_architecture"),
        Rule("transformer.h.{}.ln_mlp", "blk.{}.attn_norm", only_if="new_decoder_architecture"),
        Rule("transformer.h.{}.ln_attn", "blk.{}.attn_norm_2", only_if="new_decoder_architecture"),
        Rule("transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv", Transform.GROUPED_QKV),
        Rule("transformer.h.{}.self_attention.dense", "blk.{}.attn_output"),
        Rule("transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"),
        Rule("transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"),
        Rule("transformer.ln_f", "output_norm"),
        Rule("lm_head", "output", optional=True),
    ),
    assumed={"alibi": (False,), "bias": (False,), "parallel_attn": (True,), "activation": ("gelu",)},
    constants={"alibi": False, "bias": False, "parallel_attn": True, "activation": "gelu"},
    tied=True,
    to_metadata=_to_metadata,
    to_config=_to_config,
)
