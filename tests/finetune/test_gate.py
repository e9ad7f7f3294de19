"""The gate tells an exported form that predicts what was trained from one that does not."""

import itertools
import json

import pytest

from finetune.data.formatter import ChatFormatter
from finetune.fuse import fuse
from finetune.gate import Engine, Gate, explain, refuse
from finetune.gate_limits import limits_for, limits_for_adapter
from finetune.gate_rows import gate_rows
from finetune.recipe import Recipe, write_recipe
from localllm.errors import InvalidModelError
from quant.convert import to_gguf
from quant.lora import convert_adapter
from tests.fakes.hf_models import write_hf_model
from tests.fakes.loras import write_lora

KEYS = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture
def trained(tmp_path):
    """A tiny model and an adapter for it."""
    base = write_hf_model(tmp_path / "base", "llama")
    return base, write_lora(tmp_path / "adapter", base, KEYS)


@pytest.fixture
def formatter(trained):
    from transformers import AutoTokenizer

    return ChatFormatter(AutoTokenizer.from_pretrained(trained[0]))


@pytest.fixture
def gate(tmp_path, trained, formatter):
    """A gate that has seen the reference."""
    made = Gate(gate_rows(trained[1], formatter), tmp_path, Engine(n_threads=1, cpu=True, widen=True))
    made.keep_reference(*trained)
    return made


def test_true_forms_pass(tmp_path, trained, gate):
    base, adapter = trained
    fuse(base, adapter, tmp_path / "fused", dtype="f32")
    forms = {"f32": tmp_path / "fused"}
    forms["gguf:f32"] = to_gguf(tmp_path / "fused", tmp_path / "fused.gguf", type="f32")[0]
    for name, path in forms.items():
        verdict = gate.compare(name, path, limits_for("f32"))
        assert verdict.passes, verdict.line()
        assert verdict.divergence.kl_mean < 1e-6
        assert "ok" in verdict.line()
    plain = to_gguf(base, tmp_path / "base.gguf", type="f32")[0]
    convert_adapter(adapter, tmp_path / "adapter.gguf", to="gguf", base=base)
    verdict = gate.compare("adapter", plain, limits_for("f32"), tmp_path / "adapter.gguf")
    assert verdict.passes
    assert verdict.difference is None


def test_a_form_without_its_adapter_does_not(tmp_path, trained, gate, formatter):
    verdict = gate.compare("plain", trained[0], limits_for("q4_0"))
    assert not verdict.passes
    assert verdict.difference is not None
    rows = gate_rows(trained[1], formatter)
    assert "as trained" in explain(verdict.difference, rows, formatter.tokenizer.decode)
    assert json.loads(json.dumps(verdict.record()))["passes"] is False
    assert "--ignore-gate" in refuse(verdict, "a:f16", "a+b").hint


def test_a_wrong_adapter_is_refused_by_both_engines(tmp_path, trained, gate):
    other = write_hf_model(tmp_path / "other", "llama", hidden_size=32)
    wrong = write_lora(tmp_path / "wrong", other, KEYS)
    with pytest.raises(InvalidModelError, match="does not fit"):
        gate.compare("mlx", trained[0], limits_for("f32"), wrong)
    convert_adapter(wrong, tmp_path / "wrong.gguf", to="gguf", base=other)
    plain = to_gguf(trained[0], tmp_path / "base.gguf", type="f32")[0]
    with pytest.raises(InvalidModelError, match="cannot put"):
        gate.compare("gguf", plain, limits_for("f32"), tmp_path / "wrong.gguf")


def test_rows_are_those_held_out_then_others_then_built_in(tmp_path, trained, formatter):
    adapter = trained[1]
    assert gate_rows(adapter, formatter).source == "built-in chats"
    path = tmp_path / "rows.jsonl"

    def write(n_rows):
        chats = ({"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(n_rows))
        path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))

    write(10)
    write_recipe(adapter / "recipe.yaml", Recipe(model="m", data=(str(path),)))
    (adapter / "report.json").write_text(json.dumps({"data": {"sha256": "another"}}))
    few = gate_rows(adapter, formatter)
    assert few.source == "rows of rows.jsonl, held-out ones first"
    assert len(few.rows) == 10
    write(1000)
    many = gate_rows(adapter, formatter)
    assert many.source == "held-out rows of rows.jsonl (which have changed since the training)"
    assert 256 <= many.n_predictions <= 1024
    # Nothing of the question is compared.
    assert "What is" not in formatter.tokenizer.decode(many.rows[0][many.first[0] + 1 :])
    path.unlink()
    assert gate_rows(adapter, formatter).source == "built-in chats"


def test_a_template_that_wants_other_chats_is_no_obstacle(trained, formatter):
    formatter.tokenizer.chat_template = "{{ raise_exception('only with tools') }}"
    rows = gate_rows(trained[1], ChatFormatter(formatter.tokenizer))
    assert rows.source == "built-in chats"
    assert "What is the capital of France?" in formatter.tokenizer.decode(rows.rows[1])


def test_limits_are_wider_the_fewer_the_bits():
    order = [limits_for(kind) for kind in ("f32", "bf16", "q8_0", "q5_k_m", "4bit", "q4_k_m", "q3_k_m", "q2_k")]
    assert all(a.agreement >= b.agreement and a.kl <= b.kl for a, b in itertools.pairwise(order))
    assert limits_for("f16") == limits_for("F32")
    assert limits_for_adapter("Q4_1") == limits_for("q8_0") == limits_for_adapter("q8_0")
    assert limits_for_adapter("F16") == limits_for("f16")
