"""Measuring, planning and quantizing a tiny model: what is planned is what is made."""

import tracemalloc
from dataclasses import replace

import pytest

from localllm.errors import InvalidModelError, MemoryFitError, QuantizeError, UsageError
from localllm.gguf_header import read_gguf_header
from quant.child import never_cancelled, no_progress
from quant.chunks import Text
from quant.fit.errors import relative_errors
from quant.fit.groups import group_of, role_of
from quant.fit.plan import budget_for_tensors, parse_budget, plan_fit, require_possible
from quant.fit.sensitivity import Stored, measure_sensitivity, read_sensitivity
from quant.llama_quantize import quantize_gguf
from quant.measure.run import MeasureOptions
from tests.fakes.gguf_files import write_tiny_gguf
from tests.quant.imatrices import made_up_imatrix

_TEXTS = (Text("the world is of a user and to the assistant. " * 30),)
_OPTIONS = MeasureOptions(n_ctx=64, max_chunks=2, n_threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With its importance matrix beside it."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("fit") / "model.gguf", n_embd=256, n_ff=256)
    made_up_imatrix(path, path.with_name("imatrix.gguf"))
    return path


@pytest.fixture(scope="module")
def sensitivity(model, tmp_path_factory):
    return measure_sensitivity(
        model,
        model.with_name("imatrix.gguf"),
        _TEXTS,
        tmp_path_factory.mktemp("work"),
        candidates=("q8_0", "q4_k_s", "q3_k_s", "q2_k"),
        options=_OPTIONS,
        progress=no_progress,
        check_cancelled=never_cancelled,
    )


def test_fewer_bits_cost_more(sensitivity):
    for name, stored in sensitivity.tensors.items():
        errors = [stored[kind].error for kind in ("Q8_0", "Q4_K", "Q3_K", "Q2_K")]
        assert errors == sorted(errors), name
        assert errors[0] < 1e-3 < errors[-1]
    assert all(scale > 0 for scale in sensitivity.scales.values())
    assert {group_of(name, 2) for name in sensitivity.tensors} == set(sensitivity.scales)


def test_rounded_inputs_cost_too(sensitivity):
    assert set(sensitivity.rounding) == {role_of(name) for name in sensitivity.tensors}
    assert all(set(blocks) == {"256", "32"} for blocks in sensitivity.rounding.values())
    # The model's inputs have no outliers, and yet one scale for 256 of them is coarser than one for 32.
    lost = [sum(blocks[block] for blocks in sensitivity.rounding.values()) for block in ("32", "256")]
    assert 0 < lost[0] < lost[1]
    exact = replace(sensitivity, rounding={})
    name = "blk.0.ffn_down.weight"
    for kind, block in (("Q4_K", "256"), ("Q8_0", "32")):
        beside = sensitivity.scales[group_of(name, 2)] * sensitivity.rounding["ffn_down"][block]
        assert sensitivity.predicted_kl(name, kind) == pytest.approx(exact.predicted_kl(name, kind) + beside)


def test_two_types_of_one_size_are_told_apart_by_what_they_do_to_inputs(model, sensitivity):
    stored = {"Q4_K": Stored(1000, 1e-3), "Q4_1": Stored(1000, 1.1e-3)}
    name = "blk.0.ffn_down.weight"
    header = read_gguf_header(model)
    alike = replace(sensitivity, tensors={name: stored}, rounding={})
    assert plan_fit(header, alike, 10**9).types == {name: "Q4_K"}
    rounded = replace(alike, rounding={"ffn_down": {"256": 1e-3, "32": 2e-4}})
    assert plan_fit(header, rounded, 10**9).types == {name: "Q4_1"}


def test_the_plan_is_what_is_made(model, sensitivity, tmp_path):
    header = read_gguf_header(model)
    largest = plan_fit(header, sensitivity, 10**9)
    assert set(largest.types.values()) == {"Q8_0"}
    budget = int(largest.n_bytes * 0.55)
    plan = plan_fit(header, sensitivity, budget)
    assert plan.n_bytes <= budget
    assert len(set(plan.types.values())) > 1
    made = quantize_gguf(
        model, tmp_path / "made.gguf", plan.base, imatrix=model.with_name("imatrix.gguf"), overrides=plan.overrides
    )
    written = {tensor.name: tensor for tensor in read_gguf_header(made.files[0]).tensors}
    assert {name: written[name].type_name for name in plan.types} == dict(plan.types)
    first = min(tensor.offset for tensor in written.values())
    assert made.n_bytes - first == plan.n_bytes
    assert plan.predicted_kl == pytest.approx(sum(share.predicted_kl for share in plan.shares))
    with pytest.raises(MemoryFitError):
        plan_fit(header, sensitivity, 1000)


def test_what_no_type_fits_into_is_refused_before_it_is_measured(model, sensitivity):
    header = read_gguf_header(model)
    kept = sum(tensor.n_bytes for tensor in header.tensors if tensor.name not in sensitivity.tensors)
    least = kept + sum(min(stored.n_bytes for stored in kinds.values()) for kinds in sensitivity.tensors.values())
    require_possible(header, least)
    with pytest.raises(MemoryFitError, match="at the very least"):
        require_possible(header, int(0.9 * least))


def test_it_is_kept_and_its_scales_serve_the_next_of_the_family(model, sensitivity, tmp_path):
    sensitivity.save(tmp_path / "kept.json")
    assert read_sensitivity(tmp_path / "kept.json") == sensitivity
    (tmp_path / "kept.json").write_text('{"format": 1}')
    with pytest.raises(InvalidModelError, match="another version"):
        read_sensitivity(tmp_path / "kept.json")
    sibling = write_tiny_gguf(tmp_path / "sibling.gguf", n_embd=256, n_ff=512, seed=1)
    found = measure_sensitivity(
        sibling,
        None,
        (),
        tmp_path,
        candidates=("q8_0", "q2_k"),
        like=sensitivity,
        progress=no_progress,
        check_cancelled=never_cancelled,
    )
    assert dict(found.scales) == dict(sensitivity.scales)
    assert found.rounding == sensitivity.rounding
    for other, said in (
        (replace(sensitivity, n_layer=3), "2 layers"),
        (replace(sensitivity, architecture="qwen3"), "qwen3"),
        (replace(sensitivity, scales={"token_embd": 1.0}), "nothing for"),
    ):
        with pytest.raises(QuantizeError, match=said):
            measure_sensitivity(
                sibling,
                None,
                (),
                tmp_path,
                candidates=("q8_0",),
                like=other,
                progress=no_progress,
                check_cancelled=never_cancelled,
            )


def test_errors_take_no_more_memory_for_a_larger_tensor(tmp_path):
    # In F32 each of its three largest matrices takes 134 MB; two models are read, and their difference is squared.
    large = write_tiny_gguf(tmp_path / "large.gguf", n_layer=1, n_embd=256, n_ff=1 << 17)
    tracemalloc.start()
    try:
        errors = relative_errors(large, large, ["blk.0.ffn_down.weight"], None, check_cancelled=never_cancelled)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert errors == {"blk.0.ffn_down.weight": 0.0}
    assert peak < 64 << 20


def test_budgets(model):
    assert parse_budget("3GB") == 3_000_000_000
    assert parse_budget("1.5 GiB") == 3 << 29
    for wrong in ("", "x", "-3GB", "0", "3GBB"):
        with pytest.raises(UsageError):
            parse_budget(wrong)
    header = read_gguf_header(model)
    short, long = (budget_for_tensors(header, 10**9, n_ctx) for n_ctx in (256, 4096))
    assert short > long
    with pytest.raises(MemoryFitError):
        budget_for_tensors(header, 10**6, 256)


def test_groups():
    assert role_of("blk.11.ffn_down.weight") == "ffn_down"
    assert role_of("token_embd.weight") == "token_embd"
    assert [group_of(f"blk.{n}.attn_q.weight", 30) for n in (0, 9, 10, 29)] == [
        "attn_q:first",
        "attn_q:first",
        "attn_q:middle",
        "attn_q:last",
    ]
    assert [group_of(f"blk.{n}.ffn_down.weight", 30) for n in (0, 11)] == ["ffn_down:0", "ffn_down:11"]
