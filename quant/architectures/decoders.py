"""Fields and rules that most decoders share."""

from dataclasses import replace

from quant.architectures.family import Field, Rule, Transform

CONTEXT = Field("max_position_embeddings", "context_length")
EMBEDDING = Field("hidden_size", "embedding_length")
BLOCKS = Field("num_hidden_layers", "block_count")
FEED_FORWARD = Field("intermediate_size", "feed_forward_length")
HEADS = Field("num_attention_heads", "attention.head_count")
KV_HEADS = Field("num_key_value_heads", "attention.head_count_kv", same_as="num_attention_heads")
RMS_EPS = Field("rms_norm_eps", "attention.layer_norm_rms_epsilon", float, 1e-6)
THETA = Field("rope_theta", "rope.freq_base", float, 10000.0)
HEAD_DIM = Field("head_dim", "attention.key_length", required=False)
VALUE_DIM = Field("head_dim", "attention.value_length", required=False)
ROPE_DIM = Field("head_dim", "rope.dimension_count", required=False)
EXPERTS_USED = Field("num_experts_per_tok", "expert_used_count")

COMMON = (CONTEXT, EMBEDDING, BLOCKS, FEED_FORWARD, HEADS, KV_HEADS, RMS_EPS, THETA, HEAD_DIM, VALUE_DIM)

EMBED = Rule("model.embed_tokens", "token_embd")
NORM = Rule("model.norm", "output_norm")
OUTPUT = Rule("lm_head", "output", optional=True)
QUERY = Rule("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", part_of="blk.{}.attn_qkv", part=0)
KEY = Rule("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", part_of="blk.{}.attn_qkv", part=1)
VALUE = Rule("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", part_of="blk.{}.attn_qkv", part=2)
ATTENTION_OUT = Rule("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output")
ATTENTION = (QUERY, KEY, VALUE, ATTENTION_OUT)
ROTARY_ATTENTION = (
    replace(QUERY, transform=Transform.ROTARY),
    replace(KEY, transform=Transform.ROTARY),
    VALUE,
    ATTENTION_OUT,
)
QK_NORMS = (
    Rule("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"),
    Rule("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"),
)
MLP = (
    Rule("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    Rule("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    Rule("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
)
LAYER_NORMS = (
    Rule("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    Rule("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
)
# What transformers computes where config.json says so, and llama.cpp never does.
NO_WINDOW = {"use_sliding_window": (False, None)}
SILU = {"hidden_act": ("silu", "swish", None)}


def experts(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """A router and the experts' three matrices, named as ``block`` has them."""
    prefix = f"model.layers.{{}}.{block}"

    def stack(name: str, mlx: str, gguf: str, fused: str, half: int | None = None) -> Rule:
        return Rule(
            f"{prefix}.experts.{{expert}}.{name}",
            f"blk.{{}}.{gguf}",
            Transform.EXPERTS,
            stacked=f"{prefix}.switch_mlp.{mlx}",
            fused=f"{prefix}.experts.{fused}",
            half=half,
        )

    return (
        Rule(f"{prefix}.gate", "blk.{}.ffn_gate_inp"),
        stack(gate, "gate_proj", "ffn_gate_exps", "gate_up_proj", 0),
        stack(up, "up_proj", "ffn_up_exps", "gate_up_proj", 1),
        stack(down, "down_proj", "ffn_down_exps", "down_proj"),
    )
