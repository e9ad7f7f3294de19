"""The tables of families: settings in both directions, and what is refused by name."""

import numpy as np
import pytest

from localllm.errors import InvalidModelError
from quant.architectures.config import config_of, flatten_config, metadata_of, with_defaults
from quant.architectures.plan import plan_to_gguf, plan_to_hf
from quant.architectures.registry import FAMILIES, family_of_config, family_of_metadata
from quant.architectures.rope import LLAMA3_TENSOR, llama3_config, llama3_tensors
from quant.tensors.source import TensorInfo
from tests.fakes.hf_models import CONFIGS, weights_of


class Memory:
    """Tensors in memory, as a source."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.tensors = {name: TensorInfo(name, "F32", array.shape) for name, array in arrays.items()}

    def read_rows(self, name, start, stop):
        return self.arrays[name].reshape(self.tensors[name].n_rows, -1)[start:stop]


def planned(kind, without=(), more=(), **changes):
    config = flatten_config(CONFIGS[kind] | changes)
    arrays = {name: array for name, array in weights_of(CONFIGS[kind]).items() if name not in without}
    source = Memory(arrays | {name: np.zeros(4, np.float32) for name in more})
    family = family_of_config(config)
    config = with_defaults(family, config)
    metadata_of(family, config)
    return plan_to_gguf(family, config, source, tied=config["tie_word_embeddings"])


def test_every_family_has_a_model_here():
    assert {config["model_type"] for config in CONFIGS.values()} == {family.model_types[0] for family in FAMILIES}


@pytest.mark.parametrize("kind", CONFIGS)
def test_settings_come_back_as_they_were(kind):
    config = flatten_config(CONFIGS[kind])
    family = family_of_config(config)
    metadata = {"general.architecture": family.architecture, **metadata_of(family, config)}
    plans = plan_to_gguf(family, config, Memory(weights_of(CONFIGS[kind])), tied=config["tie_word_embeddings"])
    source = Memory({plan.name: np.zeros(plan.shape, np.float32) for plan in plans} | family.made_tensors(config))
    back = config_of(family_of_metadata(metadata), metadata, source)
    lost = {"vocab_size", "tie_word_embeddings", "torch_dtype", "pad_token_id"}  # the tensors say those
    lost |= {"sliding_window", "model_type"} if kind == "mistral" else set()
    lost |= {"intermediate_size"} if config["model_type"] == "falcon" else set()  # it has a name of its own there
    for key in config.keys() - lost:
        assert back[key] == config[key], key


def test_transformers_5_writes_rotary_settings_in_another_place():
    nested = {key: value for key, value in CONFIGS["llama3"].items() if not key.startswith("rope")}
    nested["rope_parameters"] = {"rope_theta": 500000.0, **CONFIGS["llama3"]["rope_scaling"]}
    family = family_of_config(nested)
    flat = flatten_config(nested)
    assert metadata_of(family, flat) == metadata_of(family, flatten_config(CONFIGS["llama3"]))
    assert np.array_equal(llama3_tensors(flat)[LLAMA3_TENSOR], llama3_tensors(CONFIGS["llama3"])[LLAMA3_TENSOR])


def test_the_rotary_settings_of_gemma_3_in_their_newer_place():
    nested = {key: value for key, value in CONFIGS["gemma3"].items() if not key.startswith("rope")}
    nested["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    family = family_of_config(nested)
    assert metadata_of(family, flatten_config(nested)) == metadata_of(family, flatten_config(CONFIGS["gemma3"]))


@pytest.mark.parametrize(("factor", "low", "high", "original"), [(8, 1, 4, 8192), (32, 1, 4, 8192), (5, 1, 3, 4096)])
def test_the_numbers_behind_llama_3_s_factors_are_found(factor, low, high, original):
    scaling = {"rope_type": "llama3", "factor": float(factor), "low_freq_factor": float(low)}
    scaling |= {"high_freq_factor": float(high), "original_max_position_embeddings": original}
    config = CONFIGS["llama3"] | {"head_dim": 128, "rope_scaling": scaling}
    made = llama3_tensors(config)
    found = llama3_config(config, Memory(made))["rope_scaling"]
    assert found == scaling
    assert np.array_equal(llama3_tensors(config | {"rope_scaling": found})[LLAMA3_TENSOR], made[LLAMA3_TENSOR])


def test_factors_of_another_kind_are_refused():
    with pytest.raises(InvalidModelError, match="rope_freqs"):
        llama3_config(CONFIGS["llama3"], Memory({LLAMA3_TENSOR: np.array([1, 9, 2, 7, 1, 1, 1, 3], np.float32)}))


@pytest.mark.parametrize("name", ["mamba", "deepseek_v3", "", None, 7])
def test_an_unknown_architecture_is_refused_by_name(name):
    with pytest.raises(InvalidModelError, match=f"{name}.*cannot be converted"):
        family_of_config({"model_type": name})
    with pytest.raises(InvalidModelError, match=f"{name}.*cannot be converted"):
        family_of_metadata({"general.architecture": name})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("llama", {"num_hidden_layers": None}, "num_hidden_layers"),
        ("llama", {"num_attention_heads": "4"}, "impossible num_attention_heads"),
        ("llama", {"num_attention_heads": 0}, "impossible num_attention_heads"),
        ("llama", {"intermediate_size": 2**70}, "impossible intermediate_size"),
        ("llama", {"rms_norm_eps": float("nan")}, "impossible rms_norm_eps"),
        ("llama", {"rope_scaling": "linear"}, "impossible rope_scaling: 'linear'"),
        ("llama", {"rope_parameters": {"full_attention": None}}, "impossible rope_parameters"),
        ("llama", {"rope_scaling": {"rope_type": "ntk"}}, "'ntk' is not supported"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "mixes local and global"),
        ("phi2", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi3", {"original_max_position_embeddings": "x"}, r"config\.json holds impossible settings .ValueError"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon-40b", {"num_ln_in_parallel_attn": 1}, "one norm"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_variant_that_llama_cpp_does_not_compute_is_refused_by_name(kind, changes, message):
    with pytest.raises(InvalidModelError, match=message):
        planned(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.norm.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.2.w1.weight"),
        ("bert", "encoder.layer.1.output.LayerNorm.weight"),
    ],
)
def test_a_missing_tensor_is_named(kind, lacking):
    with pytest.raises(InvalidModelError, match=lacking.removesuffix(".weight").replace(".", r"\.")):
        planned(kind, without=(lacking, lacking.replace("weight", "bias")))


def test_an_unknown_tensor_is_named():
    with pytest.raises(InvalidModelError, match=r"1 tensors that llama models do not have, 'model\.extra\.weight'"):
        planned("llama", more=("model.extra.weight",))


def test_buffers_are_left_out():
    plans = planned("llama", more=("model.layers.0.self_attn.rotary_emb.inv_freq",))
    assert all("inv_freq" not in piece.source for plan in plans for piece in plan.pieces)


def test_a_projection_that_does_not_hold_whole_heads_is_refused():
    with pytest.raises(InvalidModelError, match=r"q_proj.*does not fit"):
        planned("llama", head_dim=48)


@pytest.mark.parametrize(
    ("kind", "changes", "tensor"),
    [
        ("llama", {"hidden_size": 128, "head_dim": 16}, "embed_tokens"),
        ("llama", {"hidden_size": 1}, "q_proj"),
        ("llama", {"intermediate_size": 128}, "gate_proj"),
        ("llama", {"num_key_value_heads": 4}, "k_proj"),
        ("llama-bias", {"num_attention_heads": 8, "head_dim": 16}, "q_proj"),
        ("qwen3_moe", {"moe_intermediate_size": 64}, "gate_proj"),
        ("phi3", {"intermediate_size": 48}, "gate_up_proj"),
        ("gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32}, "q_proj"),
        ("bert", {"intermediate_size": 128}, "dense"),
    ],
)
def test_tensors_of_another_size_than_config_json_says_are_named(kind, changes, tensor):
    with pytest.raises(InvalidModelError, match=f"{tensor}.*does not fit the model's settings"):
        planned(kind, **changes)


def test_tensors_of_another_size_than_metadata_says_are_named():
    config = flatten_config(CONFIGS["llama"])
    arrays = {plan.name: np.zeros(plan.shape, np.float32) for plan in planned("llama")}
    arrays["blk.1.ffn_norm.weight"] = np.zeros(63, np.float32)
    with pytest.raises(InvalidModelError, match=r"'blk\.1\.ffn_norm\.weight'.*does not fit"):
        plan_to_hf(family_of_config(config), config, Memory(arrays))


def test_gemma_3_4b_does_not_say_its_heads():
    own = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}
    config = CONFIGS["gemma3"] | own | {"model_type": "gemma3", "num_hidden_layers": 1, "layer_types": None}
    source = Memory(weights_of(config | {"model_type": "gemma3_text"}))
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window")
    text = {key: config[key] for key in kept}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    flat = flatten_config({"model_type": "gemma3", "text_config": text})
    family = family_of_config(flat)
    flat = with_defaults(family, flat)
    metadata = metadata_of(family, flat)
    assert plan_to_gguf(family, flat, source, tied=True)
    found = [metadata[f"gemma3.attention.{key}"] for key in ("head_count", "head_count_kv", "key_length")]
    assert found == [8, 4, 256]
    assert metadata["gemma3.rope.scaling.factor"] == 8.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.context_length", float("nan")),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", [4, 4]),
        ("llama.rope.dimension_count", "x"),
        ("llama.rope.scaling.factor", "x"),
    ],
)
def test_metadata_of_a_wrong_kind_is_refused(key, value):
    config = flatten_config(CONFIGS["llama"])
    family = family_of_config(config)
    metadata = metadata_of(family, config) | {"llama.rope.scaling.type": "linear", key: value}
    with pytest.raises(InvalidModelError, match="metadata"):
        config_of(family, metadata, Memory({}))


def test_queries_of_older_files_are_taken_out_of_the_fused_projection():
    config = flatten_config(CONFIGS["phi2"])
    family = family_of_config(config)
    arrays = {plan.name: np.zeros(plan.shape, np.float32) for plan in planned("phi2")}
    for layer in range(2):
        for suffix, shape in ((".weight", (192, 64)), (".bias", (192,))):
            for part in "qkv":
                del arrays[f"blk.{layer}.attn_{part}{suffix}"]
            arrays[f"blk.{layer}.attn_qkv{suffix}"] = np.zeros(shape, np.float32)
    plans = {plan.name: plan for plan in plan_to_hf(family, config, Memory(arrays))}
    assert plans.keys() == weights_of(CONFIGS["phi2"]).keys()
    key = plans["model.layers.1.self_attn.k_proj.bias"]
    assert (key.shape, key.pieces[0].start, key.pieces[0].stop) == ((64,), 64, 128)
