"""The plan is what llama.cpp then does, and what it cannot do is refused before it starts."""

from pathlib import Path

import pytest

from localllm.errors import InvalidModelError, QuantizeError, UsageError
from localllm.gguf_header import read_gguf_header
from quant.imatrix.file import read_imatrix
from quant.llama_choices import QuantizeChoices, source_parts
from quant.llama_plan import plan_types, refuse_lacking
from tests.fakes.gguf_files import write_tiny_gguf
from tests.quant.imatrices import made_up_imatrix


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are multiples of 256."""
    return write_tiny_gguf(tmp_path_factory.mktemp("wide") / "wide.gguf", n_embd=256, n_ff=512)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 96: multiples of 32 only."""
    return write_tiny_gguf(tmp_path_factory.mktemp("narrow") / "narrow.gguf", n_embd=96, n_ff=192)


def test_a_mix_gives_important_tensors_more_bits(wide):
    plan = plan_types(wide, QuantizeChoices.parse("q4_k_m"))
    types = {tensor.name: (tensor.to_type, tensor.reason) for tensor in plan.tensors}
    assert types["blk.0.attn_q.weight"] == ("Q4_K", "base")
    assert types["blk.1.ffn_down.weight"] == ("Q6_K", "mix")
    assert types["output.weight"] == ("Q6_K", "mix")
    assert types["blk.0.attn_norm.weight"] == ("F32", "kept")
    assert 4.5 < plan.bits < 5.2
    assert plan.warnings == plan.lacking == ()


def test_rows_that_do_not_fit_get_another_type_and_a_warning(narrow):
    plan = plan_types(narrow, QuantizeChoices.parse("q4_k_m"))
    types = {tensor.name: (tensor.to_type, tensor.reason) for tensor in plan.tensors}
    assert types["blk.0.attn_q.weight"] == ("Q5_0", "fallback")
    assert types["blk.1.ffn_down.weight"] == ("Q8_0", "fallback")
    (warning,) = plan.warnings
    assert "96, 192" in warning
    assert "Q4_K becomes Q5_0" in warning
    assert "Q6_K becomes Q8_0" in warning


def test_rules_for_single_tensors(wide):
    choices = QuantizeChoices.parse("q4_k_m", [r"blk\.0\.ffn_.*=q8_0", "ffn=q5_k"], "q8_0", "q5_k")
    types = {tensor.name: (tensor.to_type, tensor.reason) for tensor in plan_types(wide, choices).tensors}
    assert types["blk.0.ffn_up.weight"] == ("Q8_0", "override")
    assert types["blk.1.ffn_up.weight"] == ("Q5_K", "override")
    assert types["output.weight"] == ("Q8_0", "override")
    assert types["token_embd.weight"] == ("Q5_K", "override")


def test_a_pure_recipe_has_one_type(wide):
    plan = plan_types(wide, QuantizeChoices.parse("q4_k_m", pure=True))
    assert {tensor.to_type for tensor in plan.tensors} == {"Q4_K", "F32"}


@pytest.mark.parametrize("name", ["iq2_xxs", "iq1_s", "iq1_m", "iq3_xxs", "q2_k_s", "iq2_m"])
def test_few_bits_without_an_importance_matrix_are_refused(wide, name):
    plan = plan_types(wide, QuantizeChoices.parse(name))
    with pytest.raises(QuantizeError, match="needs an importance matrix"):
        refuse_lacking(plan, has_imatrix=False)


def test_an_importance_matrix_with_a_gap_is_refused_by_name(wide, tmp_path):
    matrix = read_imatrix(made_up_imatrix(wide, tmp_path / "i.gguf", leave_out="blk.1.ffn_up"))
    plan = plan_types(wide, QuantizeChoices.parse("iq2_xxs"), matrix)
    assert plan.lacking == ("blk.1.ffn_up.weight",)
    with pytest.raises(QuantizeError, match=r"nothing fitting for blk\.1\.ffn_up\.weight"):
        refuse_lacking(plan, has_imatrix=True)


def test_a_pure_recipe_that_would_end_llama_cpp_is_refused(wide, tmp_path):
    # No importance matrix ever has the embeddings; ggml asserts that IQ2_XXS has one.
    matrix = read_imatrix(made_up_imatrix(wide, tmp_path / "i.gguf"))
    plan = plan_types(wide, QuantizeChoices.parse("iq2_xxs", pure=True), matrix)
    assert set(plan.lacking) == {"output.weight", "token_embd.weight"}
    with pytest.raises(QuantizeError, match="leave out `pure`"):
        refuse_lacking(plan, has_imatrix=True)


def test_an_explicit_type_that_does_not_fit_is_refused_not_asserted(narrow):
    with pytest.raises(UsageError, match="rows of 96 are no multiple of 256"):
        plan_types(narrow, QuantizeChoices.parse("q4_k_m", output_type="q6_k"))


def test_what_llama_cpp_has_no_fallback_for_is_its_refusal(narrow):
    with pytest.raises(QuantizeError, match="no tensor type fallback"):
        plan_types(narrow, QuantizeChoices.parse("q1_0"))


def test_a_quantized_source_is_named_as_such(tmp_path):
    import gguf

    source = write_tiny_gguf(tmp_path / "s.gguf", n_embd=256, n_ff=512, tensor_type=gguf.GGMLQuantizationType.Q4_1)
    plan = plan_types(source, QuantizeChoices.parse("q8_0"))
    assert any("quantized already (Q4_1)" in warning for warning in plan.warnings)


def test_a_dense_model_gains_nothing_from_mxfp4_moe(wide):
    assert any("no experts" in warning for warning in plan_types(wide, QuantizeChoices.parse("mxfp4_moe")).warnings)


def test_the_kept_bytes_are_the_sources(wide):
    plan = plan_types(wide, QuantizeChoices.parse("f16"))
    source = {tensor.name: tensor.n_bytes for tensor in read_gguf_header(wide).tensors}
    assert {tensor.name: tensor.n_bytes for tensor in plan.tensors} == source


@pytest.mark.parametrize("rule", ["ffn_down", "=q4_k", "(=q4_k", "ffn=q4_k_m"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(UsageError):
        QuantizeChoices.parse("q4_k_m", [rule])


def test_the_parts_of_a_split_model():
    parts = source_parts(Path("/m/x-00001-of-00003.gguf"))
    assert [part.name for part in parts] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    with pytest.raises(InvalidModelError, match="x-00001-of-00003"):
        source_parts(Path("/m/x-00002-of-00003.gguf"))
