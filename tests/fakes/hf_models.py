"""A tiny model of every family that can be converted, with random weights, as a Hugging Face directory.

Names and shapes are those of transformers, written down here so that no torch is needed; the weights are the same at
every call.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.fakes.mlx_models import TEMPLATE, make_tokenizer

N_VOCAB = 384
_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": N_VOCAB,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_RMS = _COMMON | {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_GEMMA = _RMS | {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 64,
}
del _GEMMA["hidden_act"]
_LONG = {"long_factor": [1.0 + 0.5 * n for n in range(8)], "short_factor": [1.0] * 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _RMS | {"model_type": "llama"},
    "smollm": _RMS | {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 16},
    "llama3": _RMS
    | {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **_LLAMA3}},
    "llama-bias": _RMS | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": _RMS | {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "mixtral": _RMS | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": _RMS | {"model_type": "qwen2", "use_sliding_window": False},
    "qwen2-yarn": _RMS
    | {
        "model_type": "qwen2",
        "rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3": _RMS | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True, "attention_bias": False},
    "qwen3_moe": _RMS
    | {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "olmoe": _RMS
    | {
        "model_type": "olmoe",
        "num_key_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "gemma2": _GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": _GEMMA
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
    "phi3": _RMS | {"model_type": "phi3", "original_max_position_embeddings": 256, "pad_token_id": 0},
    "phi3-long": _RMS
    | {
        "model_type": "phi3",
        "pad_token_id": 0,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "longrope", "type": "longrope", **_LONG},
    },
    "phi2": _COMMON
    | {
        "model_type": "phi",
        "num_key_value_heads": 4,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
    },
    "falcon": _COMMON
    | {
        "model_type": "falcon",
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "ffn_hidden_size": 256,
        "activation": "gelu",
    },
    "falcon-40b": _COMMON
    | {
        "model_type": "falcon",
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "ffn_hidden_size": 256,
        "activation": "gelu",
    },
    "bert": _COMMON
    | {
        "model_type": "bert",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
    },
}


def write_hf_model(directory: Path, kind: str, *, dtype: str = "float32", **config: object) -> Path:
    """Write config.json, model.safetensors and a tokenizer of a tiny model.

    Args:
        directory: Made if it is not there.
        kind: Of :data:`CONFIGS`.
        dtype: Of the weights: ``float32`` or ``float16``.
        config: Put into config.json beside the rest, or instead of it.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    settings = CONFIGS[kind] | config
    (directory / "config.json").write_text(json.dumps(settings))
    tensors = {name: array.astype(dtype) for name, array in weights_of(settings).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(directory, kind)
    if settings["model_type"] == "bert":
        modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
        (directory / "modules.json").write_text(json.dumps(modules))
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return directory


def _write_tokenizer(directory: Path, kind: str) -> None:
    if kind == "bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "mat", "."]
        (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
        settings: dict[str, object] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    else:
        make_tokenizer().save(str(directory / "tokenizer.json"))
        special = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def weights_of(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """The weights of a model with this config.json, float32."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in _shapes(config).items():
        if len(shape) == 1:
            # Gemma stores norms as their difference from one.
            middle = 0.0 if name.endswith("bias") or config["model_type"].startswith("gemma") else 1.0
            # Multiples of 1/256: one more or less is exact, as it is for the real models' bfloat16.
            found[name] = (middle + random.integers(-64, 64, shape) / 256).astype(np.float32)
        else:
            found[name] = random.normal(0, 1.5 / np.sqrt(shape[-1]), shape).astype(np.float32)
    return found


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    make = {"phi": _phi2, "phi3": _phi3, "falcon": _falcon, "bert": _bert}.get(config["model_type"], _llama_like)
    return make(config)


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _llama_like(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kind, width, vocab = config["model_type"], config["hidden_size"], config["vocab_size"]
    query, value = (config[key] * _head_dim(config) for key in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind.startswith("gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{prefix}.{norm}.weight": (width,) for norm in norms}
        attention = f"{prefix}.self_attn"
        for name, shape in (
            ("q_proj", (query, width)),
            ("k_proj", (value, width)),
            ("v_proj", (value, width)),
            ("o_proj", (width, query)),
        ):
            shapes[f"{attention}.{name}.weight"] = shape
            if config.get("attention_bias") or (kind == "qwen2" and name != "o_proj"):
                shapes[f"{attention}.{name}.bias"] = shape[:1]
        if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
            shapes |= {f"{attention}.{name}_norm.weight": (_head_dim(config),) for name in "qk"}
        if kind == "olmoe":
            shapes |= {f"{attention}.q_norm.weight": (query,), f"{attention}.k_norm.weight": (value,)}
        shapes |= _feed_forward(config, prefix)
    return shapes


def _feed_forward(config: dict[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    kind, width = config["model_type"], config["hidden_size"]
    names = ("gate_proj", "up_proj", "down_proj")
    n_ff = config.get("moe_intermediate_size") or config["intermediate_size"]
    count = config.get("num_local_experts") or config.get("num_experts") or 0
    modules = [f"{prefix}.mlp"]
    if count:
        block = f"{prefix}.{'block_sparse_moe' if kind == 'mixtral' else 'mlp'}"
        names = ("w1", "w3", "w2") if kind == "mixtral" else names
        modules = [f"{block}.experts.{expert}" for expert in range(count)]
    gate, up, down = names
    shapes: dict[str, tuple[int, ...]] = {f"{block}.gate.weight": (count, width)} if count else {}
    for module in modules:
        shapes |= {f"{module}.{name}.weight": (n_ff, width) for name in (gate, up)}
        shapes[f"{module}.{down}.weight"] = (width, n_ff)
        if config.get("mlp_bias"):
            shapes |= {f"{module}.{name}.bias": (size,) for name, size in ((gate, n_ff), (up, n_ff), (down, width))}
    return shapes


def _phi3(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, n_ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    fused = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * _head_dim(config)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (width,),
            f"{prefix}.post_attention_layernorm.weight": (width,),
            f"{prefix}.self_attn.qkv_proj.weight": (fused, width),
            f"{prefix}.self_attn.o_proj.weight": (width, width),
            f"{prefix}.mlp.gate_up_proj.weight": (2 * n_ff, width),
            f"{prefix}.mlp.down_proj.weight": (width, n_ff),
        }
    return shapes


def _with_bias(modules: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    weights = {f"{name}.weight": shape for name, shape in modules.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in modules.items()}


def _phi2(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, n_ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    modules: dict[str, tuple[int, ...]] = {"model.final_layernorm": (width,), "lm_head": (vocab, width)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        modules |= {f"{prefix}.self_attn.{name}": (width, width) for name in ("q_proj", "k_proj", "v_proj", "dense")}
        modules |= {f"{prefix}.mlp.fc1": (n_ff, width), f"{prefix}.mlp.fc2": (width, n_ff)}
        modules[f"{prefix}.input_layernorm"] = (width,)
    return {"model.embed_tokens.weight": (vocab, width), **_with_bias(modules)}


def _falcon(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, n_ff = config["hidden_size"], config["ffn_hidden_size"]
    newer = config["new_decoder_architecture"]
    fused = (config["num_attention_heads"] + 2 * (config["num_kv_heads"] if newer else 1)) * _head_dim(config)
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (config["vocab_size"], width)}
    norms: dict[str, tuple[int, ...]] = {"transformer.ln_f": (width,)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}"
        norms |= {f"{prefix}.{name}": (width,) for name in (["ln_attn", "ln_mlp"] if newer else ["input_layernorm"])}
        shapes |= {
            f"{prefix}.self_attention.query_key_value.weight": (fused, width),
            f"{prefix}.self_attention.dense.weight": (width, width),
            f"{prefix}.mlp.dense_h_to_4h.weight": (n_ff, width),
            f"{prefix}.mlp.dense_4h_to_h.weight": (width, n_ff),
        }
    return shapes | _with_bias(norms)


def _bert(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, n_ff = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }
    modules: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (width,)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        modules |= {f"{prefix}.attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        modules |= {
            f"{prefix}.attention.output.dense": (width, width),
            f"{prefix}.attention.output.LayerNorm": (width,),
            f"{prefix}.intermediate.dense": (n_ff, width),
            f"{prefix}.output.dense": (width, n_ff),
            f"{prefix}.output.LayerNorm": (width,),
        }
    return shapes | _with_bias(modules)
