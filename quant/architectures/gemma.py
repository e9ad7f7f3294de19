"""Gemma 2, and the text model of Gemma 3."""

from dataclasses import replace
from typing import Any

from localllm.errors import InvalidModelError
from quant.architectures.decoders import (
    ATTENTION,
    COMMON,
    CONTEXT,
    EMBED,
    HEADS,
    KV_HEADS,
    MLP,
    NORM,
    OUTPUT,
    QK_NORMS,
    THETA,
)
from quant.architectures.family import Config, Family, Field, Metadata, Rule, Transform
from quant.architectures.rope import scaling_config, scaling_metadata
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import TensorSource

# The models whose queries llama.cpp scales by the embedding's share of a head instead of the head's width.
_GEMMA2_27B, _GEMMA3_27B = 46, 62
_PATTERN = 6  # of Gemma 3's layers, every sixth sees the whole context
_ACTIVATION = {"hidden_activation": ("gelu_pytorch_tanh", None), "hidden_act": ("gelu_pytorch_tanh", None)}


def _plus_one(*rules: Rule) -> tuple[Rule, ...]:
    return tuple(replace(rule, transform=Transform.PLUS_ONE) for rule in rules)


_FIELDS = tuple(field for field in COMMON if field.config != "head_dim")
_RULES = (
    EMBED,
    *_plus_one(
        Rule("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
        Rule("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
        Rule("model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"),
        Rule("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
    ),
    *ATTENTION,
    *MLP,
    *_plus_one(NORM),
)


def _query_scale(config: Config, large: int) -> int:
    """What llama.cpp takes for ``query_pre_attn_scalar``."""
    if config["num_hidden_layers"] == large:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _require_query_scale(config: Config, large: int) -> None:
    own = config.get("query_pre_attn_scalar")
    if own is not None and own != _query_scale(config, large):
        raise InvalidModelError(
            f"The model's query_pre_attn_scalar is {own}; llama.cpp computes {_query_scale(config, large)}.",
            "This variant cannot be converted.",
        )


def _gemma2_metadata(config: Config) -> dict[str, MetadataValue]:
    _require_query_scale(config, _GEMMA2_27B)
    return scaling_metadata(config)


def _gemma2_config(metadata: Metadata, _: TensorSource) -> dict[str, Any]:
    core = {field.config: metadata.get(f"gemma2.{field.metadata}", field.default) for field in GEMMA2.fields}
    return {"query_pre_attn_scalar": _query_scale(core, _GEMMA2_27B)}


def _head_dim(default: int) -> tuple[Field, ...]:
    return (
        Field("head_dim", "attention.key_length", default=default),
        Field("head_dim", "attention.value_length", default=default),
    )


GEMMA2 = Family(
    architecture="gemma2",
    model_types=("gemma2",),
    hf_class="Gemma2ForCausalLM",
    fields=(
        *_FIELDS,
        *_head_dim(256),
        Field("sliding_window", "attention.sliding_window", default=4096),
        Field("attn_logit_softcapping", "attn_logit_softcapping", float, 50.0),
        Field("final_logit_softcapping", "final_logit_softcapping", float, 30.0),
    ),
    rules=_RULES,
    assumed=_ACTIVATION | {"attention_bias": (False,), "tie_word_embeddings": (True,)},
    constants={"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
    ignored=(r"lm_head\.weight", r".*\.rotary_emb\.inv_freq"),
    tied=True,
    to_metadata=_gemma2_metadata,
    to_config=_gemma2_config,
)


# What the config.json of Gemma 3 4B leaves to transformers.
_GEMMA3_DEFAULTS: dict[str, Any] = {
    CONTEXT.config: 131072,
    THETA.config: 1_000_000.0,
    HEADS.config: 8,
    KV_HEADS.config: 4,
}


def _gemma3_metadata(config: Config) -> dict[str, MetadataValue]:
    _require_query_scale(config, _GEMMA3_27B)
    found = scaling_metadata(config)
    kinds = config.get("layer_types")
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", _PATTERN))
    if isinstance(kinds, list):
        if "full_attention" in kinds:
            pattern = kinds.index("full_attention") + 1
        expected = [_kind(layer, pattern) for layer in range(len(kinds))]
        if kinds != expected:
            raise InvalidModelError("The model mixes local and global layers in a way that llama.cpp does not compute.")
    if pattern != _PATTERN:
        found["attention.sliding_window_pattern"] = int(pattern)
    return found


def _kind(layer: int, pattern: int) -> str:
    return "sliding_attention" if (layer + 1) % pattern else "full_attention"


def _gemma3_config(metadata: Metadata, _: TensorSource) -> dict[str, Any]:
    core = {field.config: metadata.get(f"gemma3.{field.metadata}", field.default) for field in GEMMA3.fields}
    pattern = metadata.get("gemma3.attention.sliding_window_pattern", _PATTERN)
    if not isinstance(pattern, int) or pattern < 1:
        raise InvalidModelError("The model mixes local and global layers in a way that config.json cannot say.")
    return {
        "query_pre_attn_scalar": _query_scale(core, _GEMMA3_27B),
        "sliding_window_pattern": pattern,
        "layer_types": [_kind(layer, pattern) for layer in range(core["num_hidden_layers"])],
        **scaling_config(metadata, "gemma3"),
    }


GEMMA3 = Family(
    architecture="gemma3",
    model_types=("gemma3_text", "gemma3"),
    hf_class="Gemma3ForCausalLM",
    fields=(
        *(field for field in _FIELDS if field.config not in _GEMMA3_DEFAULTS),
        *(replace(field, default=_GEMMA3_DEFAULTS[field.config], same_as="") for field in (HEADS, KV_HEADS)),
        replace(CONTEXT, default=_GEMMA3_DEFAULTS[CONTEXT.config]),
        replace(THETA, default=_GEMMA3_DEFAULTS[THETA.config]),
        Field("rope_local_base_freq", "rope.freq_base_swa", float, 10_000.0),
        *_head_dim(256),
        Field("sliding_window", "attention.sliding_window", default=4096),
    ),
    rules=(*_RULES, *_plus_one(*QK_NORMS), OUTPUT),
    assumed=_ACTIVATION
    | {"attention_bias": (False,), "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
    constants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    # The eyes of the larger models are left out.
    ignored=(r".*\.rotary_emb\.inv_freq", r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..*"),
    renamed=((r"^language_model\.", ""), (r"^model\.language_model\.", "model.")),
    tied=True,
    to_metadata=_gemma3_metadata,
    to_config=_gemma3_config,
)
