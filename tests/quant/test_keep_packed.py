"""Quantized weights that stay what they are: GGUF to MLX, MLX to GGUF."""

import json

import gguf
import mlx.core as mx
import numpy as np
import pytest

from localllm.errors import InvalidModelError
from quant.convert import from_gguf, to_gguf
from quant.tensors.dtypes import to_float32
from quant.tensors.gguf_reader import GGUFSource
from quant.tensors.gguf_writer import write_gguf
from quant.tensors.mlx_packed import UnpackedMLX
from quant.tensors.rows import OutTensor, Piece, TensorPlan, planned_tensor
from quant.tensors.safetensors import SafetensorsSource
from quant.tensors.source import TensorInfo
from tests.fakes.hf_models import write_hf_model
from tests.fakes.llama_logits import llama_logits

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 384, 32)]


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def quantized(path, model, type_name):
    """A GGUF file of the model with every matrix in a type that the gguf package can write."""
    plain = to_gguf(model, path.with_name(f"plain-{path.name}"), type="f32")[0]
    with GGUFSource(plain) as source:
        tensors = []
        for name, info in source.tensors.items():
            own = "F32" if len(info.shape) == 1 or "ffn_gate_inp" in name else type_name
            plan = TensorPlan(name, info.shape, (Piece(name, 0, info.n_rows),))
            tensors.append(planned_tensor(plan, source, own))
        write_gguf(path, source.metadata, tensors, on_tensor=lambda *_: None)
    return path


def mlx_logits(directory):
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    return np.array(model(mx.array([TOKENS]))[0])


def weights(source):
    return {
        name: np.array(to_float32(source.read_rows(name, 0, info.n_rows), info.type_name))
        for name, info in source.tensors.items()
    }


@pytest.mark.parametrize(
    ("kind", "type_name"),
    [("llama", name) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
    + [("gemma3", "Q4_1"), ("qwen3_moe", "Q4_1"), ("qwen3_moe", "Q8_0")],
)
def test_the_same_weights_in_mlx_and_the_same_file_again(tmp_path, kind, type_name):
    model = write_hf_model(tmp_path / "hf", kind)
    path, notices = quantized(tmp_path / "model.gguf", model, type_name), []
    from_gguf(path, tmp_path / "plain", dtype="f32")
    from_gguf(path, tmp_path / "mlx", dtype="keep-4bit", notice=notices.append)
    assert notices == []
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"]["bits"] == int(type_name[1])
    with SafetensorsSource(tmp_path / "plain") as plain, SafetensorsSource(tmp_path / "mlx") as packed:
        expected, found = weights(plain), weights(UnpackedMLX(packed, config["quantization"]))
    for name in expected.keys() & found.keys():
        assert np.array_equal(expected[name], found[name]), name
    if kind != "qwen3_moe":
        assert expected.keys() == found.keys()
    # The weights are the same; llama.cpp itself rounds activations to 8 bits for quantized matrices.
    unpacked = to_gguf(tmp_path / "plain", tmp_path / "unpacked.gguf", type="f32")[0]
    reference, logits = llama_logits(unpacked, TOKENS), mlx_logits(tmp_path / "mlx")
    assert np.abs(logits - reference).max() <= 1e-3 * np.abs(reference).max()
    assert np.array_equal(logits.argmax(-1), reference.argmax(-1))

    again = to_gguf(tmp_path / "mlx", tmp_path / "again.gguf", type="keep-4bit", notice=notices.append)[0]
    assert notices == []
    with GGUFSource(path) as one, GGUFSource(again) as other:
        assert dict(one.tensors) == dict(other.tensors)
        for name, info in one.tensors.items():
            rows = [source.read_rows(name, 0, info.n_rows).tobytes() for source in (one, other)]
            assert rows[0] == rows[1], name


def k_blocks(name, shape):
    """A tensor of random blocks."""
    random = np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    rows = random.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    halves = random.normal(0, 1e-4, (*rows.shape[:2], 2)).astype(np.float16).view(np.uint8)
    rows[..., :4] = halves.reshape(*rows.shape[:2], 4)
    if name == "Q6_K":
        rows[..., -2:] = halves[..., :2]
    return OutTensor(TensorInfo("", name, shape), lambda: iter([rows.reshape(shape[0], -1)]))


def test_k_types_stay_where_groups_of_32_can_hold_them_else_it_is_said(tmp_path):
    model = write_hf_model(tmp_path / "hf", "llama", hidden_size=256, num_attention_heads=4)
    plain, path = to_gguf(model, tmp_path / "plain.gguf", type="f32")[0], tmp_path / "model.gguf"
    kinds = {"blk.0.attn_q.weight": "Q4_K", "blk.0.ffn_up.weight": "Q5_K", "blk.1.attn_v.weight": "Q6_K"}
    with GGUFSource(plain) as source:
        tensors = []
        for name, info in source.tensors.items():
            if name in kinds:
                made = k_blocks(kinds[name], info.shape)
                tensors.append(OutTensor(TensorInfo(name, kinds[name], info.shape), made.chunks))
            else:
                plan = TensorPlan(name, info.shape, (Piece(name, 0, info.n_rows),))
                tensors.append(planned_tensor(plan, source, "F32"))
        write_gguf(path, source.metadata, tensors, on_tensor=lambda *_: None)
    notices = []
    from_gguf(path, tmp_path / "unpacked", dtype="f32")
    from_gguf(path, tmp_path / "mlx", dtype="keep-4bit", notice=notices.append)
    assert notices == [
        "model.layers.1.self_attn.v_proj.weight is Q6_K, which MLX cannot hold as it is: quantized anew to 8 bits."
    ]
    packing = json.loads((tmp_path / "mlx" / "config.json").read_text())["quantization"]
    with SafetensorsSource(tmp_path / "unpacked") as unpacked, SafetensorsSource(tmp_path / "mlx") as packed:
        expected, found = weights(unpacked), weights(UnpackedMLX(packed, packing))
    changed = {name for name in expected if not np.array_equal(expected[name], found[name])}
    assert changed == {"model.layers.1.self_attn.v_proj.weight"}
    (name,) = changed
    assert np.abs(expected[name] - found[name]).max() < 0.01 * np.abs(expected[name]).max()
    assert mlx_logits(tmp_path / "mlx").shape == (32, 384)

    # Back: what Q4_K and Q5_K make of two numbers fits no half.
    to_gguf(tmp_path / "mlx", tmp_path / "again.gguf", type="keep-4bit", notice=notices.append)
    assert len(notices) == 4
    assert "quantized anew to Q8_0" in notices[1]


@pytest.mark.parametrize(("bits", "group_size", "type_name"), [(4, 64, "Q4_1"), (3, 32, "Q4_1"), (5, 128, "Q5_1")])
def test_mlx_s_own_weights_become_blocks_bit_for_bit(tmp_path, bits, group_size, type_name):
    from mlx_lm.utils import load_model, quantize_model, save_model

    directory = write_hf_model(tmp_path / "hf", "llama", hidden_size=128, intermediate_size=128)
    model, config = load_model(directory)
    model.set_dtype(mx.bfloat16)
    model, config = quantize_model(model, config, group_size=group_size, bits=bits)
    save_model(directory, model)
    (directory / "config.json").write_text(json.dumps(config))
    notices = []
    kept = to_gguf(directory, tmp_path / "kept.gguf", type="keep-4bit", notice=notices.append)[0]
    plain = to_gguf(directory, tmp_path / "plain.gguf", type="f32")[0]
    assert notices == []
    with GGUFSource(kept) as one, GGUFSource(plain) as other:
        assert {info.type_name for info in one.tensors.values() if len(info.shape) > 1} == {type_name}
        expected, found = weights(other), weights(one)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert llama_logits(kept, TOKENS).shape == (32, 384)


def test_nothing_to_keep_is_said(tmp_path):
    model = write_hf_model(tmp_path / "hf", "llama")
    with pytest.raises(InvalidModelError, match="Nothing in this model is quantized"):
        to_gguf(model, tmp_path / "a.gguf", type="keep-4bit")
    plain = to_gguf(model, tmp_path / "plain.gguf", type="f32")[0]
    with pytest.raises(InvalidModelError, match="Nothing in this model is quantized"):
        from_gguf(plain, tmp_path / "mlx", dtype="keep-4bit")
    bert = to_gguf(write_hf_model(tmp_path / "bert", "bert"), tmp_path / "bert.gguf", type="q8_0")[0]
    with pytest.raises(InvalidModelError, match="mlx-lm has no bert"):
        from_gguf(bert, tmp_path / "mlx", dtype="keep-4bit")


@pytest.mark.model
def test_the_starter_stays_in_four_bits(tmp_path, starter_path):
    """Greedy text of mlx-lm with the kept weights, against llama.cpp with the file itself."""
    from mlx_lm.utils import load_model, load_tokenizer

    notices = []
    from_gguf(starter_path, tmp_path / "mlx", dtype="keep-4bit", notice=notices.append)
    model, _ = load_model(tmp_path / "mlx")
    prompt = load_tokenizer(tmp_path / "mlx").encode("The capital of France is")
    tokens = list(prompt)
    for _ in range(4):
        tokens.append(int(model(mx.array([tokens]))[0, -1].argmax()))
    logits, reference = np.array(model(mx.array([tokens]))[0]), llama_logits(starter_path, tokens)
    assert notices == []
    assert [int(token) for token in reference[len(prompt) - 1 : -1].argmax(-1)] == tokens[len(prompt) :]
    # llama.cpp rounds activations to 8 bits for quantized matrices, MLX does not.
    assert np.abs(logits - reference).max() <= 0.05 * np.abs(reference).max()
