"""An adapter in its model's weights computes what it computes beside them."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file

from finetune.fuse import fuse
from localllm.errors import InvalidModelError, JobCancelledError, UsageError
from quant.convert import to_gguf
from quant.lora import convert_adapter
from tests.fakes.hf_models import N_VOCAB, write_hf_model
from tests.fakes.llama_logits import llama_logits
from tests.fakes.loras import write_lora

TOKENS = [1, 5, 9, 200, 33, 17, 4, 250]
KEYS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(autouse=True)
def on_cpu():
    mx.set_default_device(mx.cpu)


def logits(directory, adapter=None):
    model, _ = load_model(directory)
    if adapter is not None:
        load_adapters(model, str(adapter))
    model.eval()
    return np.array(model(mx.array([TOKENS]))[0].astype(mx.float32))


def apart(left, right):
    """The largest difference, as a share of the largest logit."""
    return np.abs(left - right).max() / np.abs(right).max()


def quantized(directory, bits=4):
    """The model in place with its linear layers packed, as mlx-lm writes it."""
    model, _ = load_model(directory)
    nn.quantize(model, group_size=32, bits=bits)
    mx.save_safetensors(str(directory / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = json.loads((directory / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": bits}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def as_dora(adapter, model):
    """The same adapter as DoRA, whose magnitudes have been learnt too."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"fine_tune_type": "dora"}))
    weights, base = load_file(adapter / "adapters.safetensors"), load_file(model / "model.safetensors")
    random = np.random.default_rng(5)
    for name in [name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")]:
        norms = np.linalg.norm(base[f"{name}.weight"], axis=1)
        weights[f"{name}.m"] = (norms * random.uniform(0.8, 1.2, norms.shape)).astype(np.float32)
    save_file(weights, adapter / "adapters.safetensors")
    return adapter


@pytest.mark.parametrize("kind", ["llama", "llama-bias", "qwen3", "gemma2"])
def test_the_fused_model_computes_what_the_adapter_does(tmp_path, kind):
    base = write_hf_model(tmp_path / "base", kind)
    adapter = write_lora(tmp_path / "adapter", base, KEYS)
    told = []
    found = fuse(base, adapter, tmp_path / "fused", progress=lambda *what: told.append(what))
    wanted = logits(base, adapter)
    assert apart(logits(base), wanted) > 0.1  # the adapter does something
    assert apart(logits(tmp_path / "fused"), wanted) < 1e-4
    assert len(found.errors) == len(KEYS) * 2
    assert found.worst[1] < 1e-6
    assert told[-1][1] == told[-1][2]
    assert (tmp_path / "fused" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "fused" / "tokenizer_config.json").read_text())["chat_template"]


def test_dora_and_experts(tmp_path):
    base = write_hf_model(tmp_path / "base", "llama")
    adapter = as_dora(write_lora(tmp_path / "dora", base, KEYS), base)
    assert not fuse(base, adapter, tmp_path / "fused").stacked
    assert apart(logits(tmp_path / "fused"), logits(base, adapter)) < 1e-4
    experts = write_hf_model(tmp_path / "moe", "qwen3_moe")
    adapter = write_lora(tmp_path / "lora", experts, ("mlp.switch_mlp.down_proj", "self_attn.q_proj"))
    assert fuse(experts, adapter, tmp_path / "fused-moe").stacked
    assert apart(logits(tmp_path / "fused-moe"), logits(experts, adapter)) < 1e-4


def test_as_gguf_and_as_an_adapter_of_llama_cpp(tmp_path):
    base = write_hf_model(tmp_path / "base", "llama")
    adapter = write_lora(tmp_path / "adapter", base, KEYS)
    fuse(base, adapter, tmp_path / "fused")
    wanted = logits(base, adapter)
    file = to_gguf(tmp_path / "fused", tmp_path / "fused.gguf", type="f32")[0]
    assert apart(llama_logits(file, TOKENS)[:, :N_VOCAB], wanted) < 1e-3
    plain = to_gguf(base, tmp_path / "base.gguf", type="f32")[0]
    convert_adapter(adapter, tmp_path / "adapter.gguf", to="gguf", base=base)
    assert apart(llama_logits(plain, TOKENS, adapter=tmp_path / "adapter.gguf")[:, :N_VOCAB], wanted) < 1e-3


def test_a_packed_base_is_unpacked_and_packed_again_only_when_asked(tmp_path):
    base = quantized(write_hf_model(tmp_path / "base", "llama"))
    adapter = write_lora(tmp_path / "adapter", base, KEYS, scale=0.1)
    wanted = logits(base, adapter)
    plain = fuse(base, adapter, tmp_path / "plain", dtype="f32")
    assert apart(logits(tmp_path / "plain"), wanted) < 1e-4
    assert plain.worst[1] < 1e-5
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    packed = fuse(base, adapter, tmp_path / "packed", requantize=True)
    assert packed.mean > 0.3  # four bits take much of so small a change away, and it is said
    assert "%" in packed.line()
    assert apart(logits(tmp_path / "packed"), wanted) > 1e-3
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "packed"))
    name = "model.layers.0.self_attn.{}.weight".format
    assert before[name("k_proj")].tobytes() == after[name("k_proj")].tobytes()
    assert before[name("q_proj")].tobytes() != after[name("q_proj")].tobytes()
    assert after[name("q_proj")].dtype == np.uint32
    eight = fuse(quantized(write_hf_model(tmp_path / "8", "llama"), 8), adapter, tmp_path / "p8", requantize=True)
    assert eight.mean < packed.mean / 8


def test_a_smaller_type_costs_what_is_said(tmp_path):
    base = write_hf_model(tmp_path / "base", "llama")
    adapter = write_lora(tmp_path / "adapter", base, KEYS, scale=0.1)
    half = fuse(base, adapter, tmp_path / "half", dtype="f16")
    brain = fuse(base, adapter, tmp_path / "brain", dtype="bf16")
    assert 0 < half.mean < brain.mean / 4
    assert json.loads((tmp_path / "brain" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert apart(logits(tmp_path / "half"), logits(base, adapter)) < 1e-2


def test_what_cannot_be_leaves_nothing(tmp_path):
    base = write_hf_model(tmp_path / "base", "llama")
    adapter = write_lora(tmp_path / "adapter", base, KEYS)
    other = write_hf_model(tmp_path / "other", "llama", hidden_size=32)
    with pytest.raises(InvalidModelError, match="does not fit this model"):
        fuse(other, adapter, tmp_path / "fused")
    with pytest.raises(UsageError, match="not quantized"):
        fuse(base, adapter, tmp_path / "fused", requantize=True)

    def cancel(*_):
        raise JobCancelledError

    with pytest.raises(JobCancelledError):
        fuse(base, adapter, tmp_path / "fused", check_cancelled=cancel)
    (base / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidModelError, match="cannot load"):
        fuse(base, adapter, tmp_path / "fused")
    assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "base", "other", "hf", "home"}
