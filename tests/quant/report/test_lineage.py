"""Which models are the same model in another form."""

from localllm.models.manifest import Parent
from localllm.models.store import ModelStore
from quant.report.lineage import relatives
from tests.fakes.models import put_model

SHA = "0" * 64


def made(home, name, variant, parent, how):
    return put_model(home, name, variant, parent=Parent(parent, SHA, how.format(parent)))


def names(home, source):
    return {str(model.model_name) for model in relatives(ModelStore(home), source)}


def test_all_that_goes_back_to_the_same_model(home):
    root = put_model(home, "base", "f16")
    small = made(home, "base", "q4_k_m", "base:f16", "quantize {} --to q4_k_m --as base:q4_k_m")
    made(home, "renamed", "small", "base:f16", "quantize {} --fit 3GB --as renamed:small")
    made(home, "base", "mlx", "base:q4_k_m", "models export {} --to mlx --as base:mlx")
    put_model(home, "base", "hf")  # pulled by itself
    put_model(home, "other", "f16")
    tuned = made(home, "base-mine", "f16", "base:f16", "models export {}+mine --to gguf --as base-mine:f16")
    made(home, "base-mine", "q4_k_m", "base-mine:f16", "quantize {} --to q4_k_m --as base-mine:q4_k_m")
    made(home, "base", "tuned", "base:f16", "models export {}+mine --to gguf --as base:tuned")
    family = {"base:f16", "base:q4_k_m", "renamed:small", "base:mlx", "base:hf"}
    assert names(home, root) == family - {"base:f16"}
    assert names(home, small) == family - {"base:q4_k_m"}
    assert names(home, tuned) == {"base-mine:q4_k_m"}


def test_a_parent_that_is_gone_still_joins_its_children(home):
    one = made(home, "a", "q8_0", "gone:f16", "quantize {} --to q8_0 --as a:q8_0")
    made(home, "b", "q4_0", "gone:f16", "quantize {} --to q4_0 --as b:q4_0")
    made(home, "c", "q4_0", "else:f16", "quantize {} --to q4_0 --as c:q4_0")
    assert names(home, one) == {"b:q4_0"}


def test_a_circle_of_parents_ends(home):
    one = made(home, "a", "x", "a:y", "quantize {} --to q8_0 --as a:x")
    made(home, "a", "y", "a:x", "quantize {} --to q8_0 --as a:y")
    assert names(home, one) <= {"a:y"}
