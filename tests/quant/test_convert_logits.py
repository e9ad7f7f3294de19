"""Every family through both conversions: the same logits as mlx-lm or transformers compute, and the same bytes again.

The bar: no logit is further off than a thousandth of the largest, and the most likely token is the same everywhere.
mlx-lm has no Falcon and no BERT: their references in ``golden_logits.json`` were made once with
``python tests/quant/golden.py`` (torch 2.13.0, transformers 5.23.0).
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from quant.convert import from_gguf, to_gguf
from quant.tensors.gguf_reader import GGUFSource
from tests.fakes.hf_models import CONFIGS, weights_of, write_hf_model
from tests.fakes.llama_logits import llama_embedding, llama_logits

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 384, 48)]
GOLDEN = json.loads((Path(__file__).parent / "golden_logits.json").read_text())
WITHOUT_MLX = ("falcon", "falcon-40b", "bert")


def mlx_logits(directory: Path) -> np.ndarray:
    from mlx_lm.utils import load_model

    with mx.stream(mx.cpu):
        model, _ = load_model(directory)
        return np.array(model(mx.array([TOKENS]))[0])


def assert_close(logits: np.ndarray, reference: np.ndarray) -> None:
    assert np.abs(logits - reference).max() <= 1e-3 * np.abs(reference).max()
    assert np.array_equal(logits.argmax(-1), reference.argmax(-1))


def assert_same_tensors(one: Path, other: Path, *, but: str = "") -> None:
    with GGUFSource(one) as first, GGUFSource(other) as second:
        assert dict(first.tensors) == dict(second.tensors)
        for name, info in first.tensors.items():
            if info.type_name == but:
                continue
            rows = [source.read_rows(name, 0, info.n_rows).tobytes() for source in (first, second)]
            assert rows[0] == rows[1], name


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize("kind", CONFIGS)
def test_there_and_back(tmp_path, kind):
    original = write_hf_model(tmp_path / "hf", kind)
    gguf, back, again = tmp_path / "model.gguf", tmp_path / "back", tmp_path / "again.gguf"
    to_gguf(original, gguf, type="f32")
    from_gguf(gguf, back, dtype="f32")
    to_gguf(back, again, type="f32")

    arrays, expected = load_file(back / "model.safetensors"), weights_of(CONFIGS[kind])
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    assert_same_tensors(gguf, again)

    if kind not in WITHOUT_MLX:
        logits = llama_logits(gguf, TOKENS)
        assert_close(logits, mlx_logits(original))
        assert_close(logits, mlx_logits(back))


@pytest.mark.parametrize("kind", WITHOUT_MLX)
def test_what_transformers_computed(tmp_path, kind):
    to_gguf(write_hf_model(tmp_path / "hf", kind), tmp_path / "model.gguf", type="f32")
    found = (llama_embedding if kind == "bert" else llama_logits)(tmp_path / "model.gguf", TOKENS)
    # Of the logits, every sixteenth token's at every eighth position is kept: enough that nothing wrong passes.
    assert_close(found if kind == "bert" else found[::8, ::16], np.array(GOLDEN[kind]))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3_moe", "falcon"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_keeps_its_bytes_both_ways(tmp_path, kind, dtype):
    to_gguf(write_hf_model(tmp_path / "hf", kind), tmp_path / "one.gguf", type=dtype)
    from_gguf(tmp_path / "one.gguf", tmp_path / "back", dtype=dtype)
    to_gguf(tmp_path / "back", tmp_path / "two.gguf")  # auto: its own type
    # What GGUF keeps in F32 (norms, biases, routers) is rounded in a directory of 16 bits.
    assert_same_tensors(tmp_path / "one.gguf", tmp_path / "two.gguf", but="F32")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_as_mlx_and_transformers_stack_them(tmp_path, kind):
    """MLX stacks each matrix; transformers 5 holds gates and ups in one stack: the same GGUF comes of either."""
    directory = write_hf_model(tmp_path / "hf", kind)
    to_gguf(directory, tmp_path / "one.gguf", type="f32")
    weights = weights_of(CONFIGS[kind])
    gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    mlx, fused = {}, {}
    for name, array in weights.items():
        block, _, rest = name.partition(".experts.")
        if not rest:
            mlx[name] = fused[name] = array
        elif rest.startswith("0."):
            stacks = {
                own: np.stack([weights[f"{block}.experts.{expert}.{own}.weight"] for expert in range(4)])
                for own in (gate, up, down)
            }
            names = {gate: "gate_proj", up: "up_proj", down: "down_proj"}
            mlx |= {f"{block}.switch_mlp.{names[own]}.weight": stack for own, stack in stacks.items()}
            fused[f"{block}.experts.gate_up_proj"] = np.concatenate([stacks[gate], stacks[up]], axis=1)
            fused[f"{block}.experts.down_proj"] = stacks[down]
    for number, form in enumerate((mlx, fused)):
        mx.save_safetensors(str(directory / "model.safetensors"), {key: mx.array(value) for key, value in form.items()})
        to_gguf(directory, tmp_path / f"{number}.gguf", type="f32")
        assert_same_tensors(tmp_path / "one.gguf", tmp_path / f"{number}.gguf")


def test_an_mlx_model_in_four_bits(tmp_path):
    """Unpacked, its logits are those that mlx-lm computes with the packed weights."""
    from mlx_lm.utils import load_model, quantize_model, save_model

    directory = write_hf_model(tmp_path / "hf", "llama")
    model, config = load_model(directory)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    save_model(directory, model)
    (directory / "config.json").write_text(json.dumps(config))
    reference = np.array(model(mx.array([TOKENS]))[0])
    to_gguf(directory, tmp_path / "model.gguf", type="f32")
    assert_close(llama_logits(tmp_path / "model.gguf", TOKENS), reference)
