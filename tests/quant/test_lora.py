"""LoRA adapters in MLX's, PEFT's and llama.cpp's form: the same logits, the same bytes again, refusals by name."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localllm.adapters import AdapterStore
from localllm.errors import InvalidModelError, LocalLLMError, StoreError, UsageError
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from quant.convert import to_gguf
from quant.lora import complete_adapter, convert_adapter
from quant.tensors.gguf_reader import GGUFSource
from tests.fakes.hf_models import write_hf_model
from tests.fakes.llama_logits import llama_logits
from tests.fakes.loras import write_lora

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 384, 32)]
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EXPERTS = ("gate_proj", "up_proj", "down_proj")
KEYS = {
    "llama": (*ATTENTION, *MLP, "lm_head", "model.embed_tokens"),
    "mistral": ATTENTION,
    "qwen3": ATTENTION + MLP,
    "gemma3": ATTENTION + MLP,
    "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj"),
    "mixtral": (*ATTENTION, *(f"block_sparse_moe.switch_mlp.{name}" for name in EXPERTS)),
    "qwen3_moe": ("self_attn.q_proj", *(f"mlp.switch_mlp.{name}" for name in EXPERTS)),
}


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def mlx_logits(model, adapter):
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    loaded, _ = load_model(model)
    if adapter is not None:
        loaded = load_adapters(loaded, str(adapter))
    loaded.eval()
    return np.array(loaded(mx.array([TOKENS]))[0])


def assert_same_arrays(one, other):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KEYS)
def test_the_same_logits_in_both_engines_and_the_same_bytes_again(tmp_path, kind):
    model = write_hf_model(tmp_path / "hf", kind)
    mine = write_lora(tmp_path / "mine", model, KEYS[kind])
    gguf = to_gguf(model, tmp_path / "model.gguf", type="f32")[0]
    convert_adapter(mine, tmp_path / "adapter.gguf", to="gguf", base=model)

    reference = mlx_logits(model, mine)
    logits = llama_logits(gguf, TOKENS, adapter=tmp_path / "adapter.gguf")
    assert np.abs(logits - reference).max() <= 1e-3 * np.abs(reference).max()
    assert np.array_equal(logits.argmax(-1), reference.argmax(-1))
    assert (
        np.abs(mlx_logits(model, None) - reference).max() > 0.05 * np.abs(reference).max()
    )  # it does change something

    for base in (model, gguf):  # the settings of either form of the model do
        back = tmp_path / f"back-{base.name}"
        convert_adapter(tmp_path / "adapter.gguf", back, to="mlx", base=base)
        assert_same_arrays(mine / "adapters.safetensors", back / "adapters.safetensors")
    assert np.array_equal(mlx_logits(model, back), reference)  # mlx-lm finds every module by the settings written
    convert_adapter(back, tmp_path / "again.gguf", to="gguf", base=gguf)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "adapter.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_through_peft_and_back(tmp_path, kind):
    model = write_hf_model(tmp_path / "hf", kind)
    mine = write_lora(tmp_path / "mine", model, KEYS[kind])
    convert_adapter(mine, tmp_path / "peft", to="peft", base=model)
    convert_adapter(tmp_path / "peft", tmp_path / "back", to="mlx", base=model)
    assert_same_arrays(mine / "adapters.safetensors", tmp_path / "back" / "adapters.safetensors")
    convert_adapter(mine, tmp_path / "one.gguf", to="gguf", base=model)
    convert_adapter(tmp_path / "peft", tmp_path / "two.gguf", to="gguf", base=model)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    convert_adapter(tmp_path / "two.gguf", tmp_path / "peft2", to="peft", base=model)
    assert_same_arrays(
        tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "peft2" / "adapter_model.safetensors"
    )


def test_what_peft_is_told(tmp_path):
    model = write_hf_model(tmp_path / "hf", "llama")
    mine = write_lora(tmp_path / "mine", model, ("self_attn.q_proj", "model.embed_tokens"), n_layers=1)
    convert_adapter(mine, tmp_path / "peft", to="peft", base=model)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 16.0)
    assert sorted(config["target_modules"]) == ["model.embed_tokens", "model.layers.1.self_attn.q_proj"]
    arrays = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model.model."): array.shape for name, array in arrays.items()}
    assert shapes == {
        "embed_tokens.lora_embedding_A": (4, 384),
        "embed_tokens.lora_embedding_B": (64, 4),
        "layers.1.self_attn.q_proj.lora_A.weight": (4, 64),
        "layers.1.self_attn.q_proj.lora_B.weight": (64, 4),
    }


def peft(directory, arrays, **config):
    directory.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]} | config
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file(arrays, directory / "adapter_model.safetensors")
    return directory


def half(module, rank=2, rows=64, columns=64):
    random, prefix = np.random.default_rng(rank), f"base_model.model.model.layers.{module}"
    return {
        f"{prefix}.lora_A.weight": random.normal(size=(rank, columns)).astype(np.float32),
        f"{prefix}.lora_B.weight": random.normal(size=(rows, rank)).astype(np.float32),
    }


def products(directory):
    """scale * B A by module, of an adapter in MLX's form."""
    scale = json.loads((directory / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    arrays = load_file(directory / "adapters.safetensors")
    names = {name.rpartition(".")[0] for name in arrays}
    return {name: scale * (arrays[f"{name}.lora_a"] @ arrays[f"{name}.lora_b"]).T for name in names}


def test_ranks_and_scales_that_differ_become_one(tmp_path):
    model = write_hf_model(tmp_path / "hf", "llama")
    arrays = half("0.self_attn.q_proj") | half("1.self_attn.o_proj", rank=3)
    patterns = {"rank_pattern": {"o_proj": 3}, "alpha_pattern": {"o_proj": 5}}
    source = peft(tmp_path / "peft", arrays, **patterns)
    convert_adapter(source, tmp_path / "mlx", to="mlx", base=model)
    found = products(tmp_path / "mlx")
    for module, scale in (("0.self_attn.q_proj", 8 / 2), ("1.self_attn.o_proj", 5 / 3)):
        a, b = (arrays[f"base_model.model.model.layers.{module}.lora_{letter}.weight"] for letter in "AB")
        assert np.allclose(found[f"model.layers.{module}"], scale * (b @ a), atol=1e-5)
    convert_adapter(source, tmp_path / "a.gguf", to="gguf", base=model)
    with GGUFSource(tmp_path / "a.gguf") as adapter:
        assert adapter.metadata["adapter.lora.alpha"] == 12.0
        assert adapter.tensors["blk.0.attn_q.weight.lora_a"].shape == (3, 64)


def test_a_scale_by_the_root_of_the_rank(tmp_path):
    model = write_hf_model(tmp_path / "hf", "llama")
    source = peft(tmp_path / "peft", half("0.self_attn.q_proj", rank=4), use_rslora=True)
    convert_adapter(source, tmp_path / "mlx", to="mlx", base=model)
    assert json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["lora_parameters"]["scale"] == 4.0


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        (half("0.self_attn.q_proj"), {"use_dora": True}, "use_dora"),
        (half("0.self_attn.q_proj"), {"peft_type": "IA3"}, "no LoRA adapter"),
        (half("0.self_attn.rotary"), {}, "layers.0.self_attn.rotary, which has no counterpart"),
        (half("7.self_attn.q_proj"), {}, "layers.7.self_attn.q_proj"),
        (
            {"base_model.model.lm_head.modules_to_save.weight": np.ones((2, 2), np.float32)},
            {},
            "lm_head.modules_to_save",
        ),
        (dict([next(iter(half("0.self_attn.q_proj").items()))]), {}, "only one half"),
        ({}, {}, "nothing that changes"),
        (half("0.self_attn.q_proj"), {"alpha_pattern": {"layers.[0-9]+.q_proj": 1}}, "no module's name"),
        (half("0.self_attn.q_proj", rows=60), {}, "does not fit"),
    ],
)
def test_what_other_forms_cannot_hold_is_refused_by_name(tmp_path, arrays, config, message):
    model = write_hf_model(tmp_path / "hf", "llama")
    with pytest.raises(InvalidModelError, match=message):
        convert_adapter(peft(tmp_path / "peft", arrays, **config), tmp_path / "a.gguf", to="gguf", base=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "peft"]


@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (96, 64)])
@pytest.mark.parametrize("to", ["gguf", "mlx"])
def test_an_adapter_of_a_model_of_another_size_is_refused(tmp_path, rows, columns, to):
    model = write_hf_model(tmp_path / "hf", "llama")
    adapter = peft(tmp_path / "a", half("0.self_attn.q_proj", rows=rows, columns=columns))
    with pytest.raises(InvalidModelError, match=r"does not fit the model: its .*q_proj takes"):
        convert_adapter(adapter, tmp_path / "made", to=to, base=model)
    assert not (tmp_path / "made").exists()


def test_dora_is_refused(tmp_path):
    model = write_hf_model(tmp_path / "hf", "llama")
    mine = write_lora(tmp_path / "mine", model, ("self_attn.q_proj",))
    config = json.loads((mine / "adapter_config.json").read_text())
    (mine / "adapter_config.json").write_text(json.dumps(config | {"fine_tune_type": "dora"}))
    with pytest.raises(InvalidModelError, match=r"layers\.\d\.self_attn\.q_proj by DoRA"):
        convert_adapter(mine, tmp_path / "a.gguf", to="gguf", base=model)


def test_an_embedding_that_is_the_output_too_is_refused_for_llama_cpp(tmp_path):
    model = write_hf_model(tmp_path / "hf", "qwen3")
    mine = write_lora(tmp_path / "mine", model, ("model.embed_tokens",))
    with pytest.raises(InvalidModelError, match=r"model\.embed_tokens, which is the model's output too"):
        convert_adapter(mine, tmp_path / "a.gguf", to="gguf", base=model)
    convert_adapter(mine, tmp_path / "peft", to="peft", base=model)  # PEFT can


def test_wrong_words_and_wrong_models(tmp_path):
    model, other = write_hf_model(tmp_path / "hf", "llama"), write_hf_model(tmp_path / "other", "qwen3")
    mine = write_lora(tmp_path / "mine", model, ("self_attn.q_proj",))
    convert_adapter(mine, tmp_path / "a.gguf", to="gguf", base=model)
    with pytest.raises(InvalidModelError, match="for llama models"):
        convert_adapter(tmp_path / "a.gguf", tmp_path / "b", to="mlx", base=other)
    with pytest.raises(UsageError):
        convert_adapter(mine, tmp_path / "b", to="onnx", base=model)
    with pytest.raises(InvalidModelError, match="holds no adapter"):
        convert_adapter(model, tmp_path / "b", to="mlx", base=model)
    with pytest.raises(StoreError, match="is there already"):
        convert_adapter(tmp_path / "a.gguf", mine, to="mlx", base=model)


def test_an_installed_adapter_gets_its_other_form(tmp_path, home):
    model = write_hf_model(tmp_path / "tiny", "llama")
    mine = write_lora(tmp_path / "mine", model, ("self_attn.q_proj",))
    models, store = ModelStore(home), AdapterStore(home)
    pull(str(to_gguf(model, tmp_path / "tiny-F32.gguf", type="f32")[0]), models)
    adapter, _ = store.install(mine, base="tiny")
    assert adapter.forms == ("mlx",)
    both = complete_adapter(store, models, adapter)
    assert set(both.forms) == {"mlx", "gguf"}
    assert store.resolve("mine") == both == complete_adapter(store, models, both)
    assert both.is_for(models.resolve("tiny"))
    convert_adapter(mine, tmp_path / "a.gguf", to="gguf", base=model)
    assert store.path(both, "gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert list(home.partial.iterdir()) == []


def test_a_form_of_another_adapter_is_not_taken(tmp_path, home):
    model = write_hf_model(tmp_path / "tiny", "llama")
    store = AdapterStore(home)
    adapter, _ = store.install(write_lora(tmp_path / "mine", model, ("self_attn.q_proj",)), base="tiny")
    other = write_lora(tmp_path / "other", model, ("self_attn.q_proj",), rank=2)
    convert_adapter(other, tmp_path / "a.gguf", to="gguf", base=model)
    with pytest.raises(LocalLLMError, match="another adapter"):
        store.add_form(adapter, tmp_path / "a.gguf")
    assert store.resolve("mine") == adapter
    assert not (store.directory(adapter) / "adapter.gguf").exists()
