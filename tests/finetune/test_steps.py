"""Packing, chunks, recomputation and accumulation change no loss and no gradient."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from finetune.attention import PackedCache
from finetune.body import find_body
from finetune.document_attention import DocumentCache, document_attention
from finetune.lanes import Lanes
from finetune.lora import add_adapters
from finetune.losses import cross_entropy_sum, linear_cross_entropy
from finetune.packing import make_batch, pack
from finetune.recipe import Recipe
from finetune.recompute import chosen
from finetune.steps import Stepper
from tests.fakes.tiny_llama import random_examples, tiny_llama

RECIPE = Recipe(model="tiny", data=("rows.jsonl",), rank=4, alpha=8)


def adapted(recipe=RECIPE, **changes):
    """A tiny model whose adapters do something."""
    model = tiny_llama(**changes)
    body = find_body(model, 97)
    add_adapters(model, recipe)
    mx.random.seed(5)
    model.update(tree_map(lambda p: mx.random.normal(p.shape) * 0.1, model.trainable_parameters()))
    return model, body


def stepper(body, *, packed, which="none", fused=False, compiled=False):
    blocks = chosen(body.model.layers, which)
    return Stepper(body, packed=packed, fused=fused, checkpointed=blocks, compute=mx.float32, compiled=compiled)


def gradients(model, body, batches, **options):
    total, loss = None, 0.0
    for batch in batches:
        value, gradient = stepper(body, **options).loss_and_gradient(model.trainable_parameters(), batch)
        loss += value.item()
        total = gradient if total is None else tree_map(lambda a, b: a + b, total, gradient)
    return loss, dict(tree_flatten(total))


def largest_difference(a, b):
    assert a.keys() == b.keys()
    scale = max(mx.abs(value).max().item() for value in b.values())
    return max(mx.abs(a[name] - b[name]).max().item() for name in a) / scale


@pytest.fixture(scope="module")
def reference():
    """Loss and gradients of each document alone, in plain mlx: the whole model's logits, nothing of ours."""
    model, _ = adapted()
    examples = random_examples(12)

    def loss(model):
        total = mx.array(0.0)
        for example in examples:
            logits = model(mx.array(example.tokens[None, :-1]))
            losses = nn.losses.cross_entropy(logits, mx.array(example.tokens[None, 1:]))
            total = total + (losses * mx.array(example.supervised[None, 1:])).sum()
        return total

    value, gradient = nn.value_and_grad(model, loss)(model)
    return examples, value.item(), dict(tree_flatten(gradient))


@pytest.mark.parametrize("which", ["none", "alternate", "all"])
@pytest.mark.parametrize(("packed", "fused"), [(True, True), (True, False), (False, True)])
def test_loss_and_gradients_equal_those_of_documents_alone(reference, packed, fused, which):
    examples, loss, gradient = reference
    model, body = adapted()
    lengths = [len(example.tokens) - 1 for example in examples]
    rows = [[examples[i] for i in row] for row in pack(lengths, 64)] if packed else [[each] for each in examples]
    batches = [make_batch(rows[:2], 64), make_batch(rows[2:], 64)]
    ours, our_gradient = gradients(model, body, batches, packed=packed, fused=fused, which=which)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert largest_difference(our_gradient, gradient) < 1e-5


def test_recomputation_leaves_the_class_as_it_was():
    model, body = adapted()
    before = type(model.layers[0]).__call__
    gradients(model, body, [make_batch([random_examples(1)], 64)], packed=True, which="all")
    assert type(model.layers[0]).__call__ is before


@pytest.mark.parametrize("fused", [True, False])
def test_a_sliding_window_is_kept_inside_documents(fused):
    changes = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
    model, body = adapted(**changes)
    assert body.can_pack
    examples = random_examples(4, shortest=10)
    alone = [make_batch([[example]], 64) for example in examples]
    together = [make_batch([examples[:2], examples[2:]], 64)]
    loss, gradient = gradients(model, body, alone, packed=False)
    packed_loss, packed_gradient = gradients(model, body, together, packed=True, fused=fused)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert largest_difference(packed_gradient, gradient) < 1e-5


def test_a_batch_without_supervised_tokens_is_no_nan():
    model, body = adapted()
    batch = make_batch([random_examples(1)], 64)
    batch.supervised[:] = False
    loss, gradient = gradients(model, body, [batch], packed=True)
    assert loss == 0
    assert all(mx.abs(value).max().item() == 0 for value in gradient.values())


@pytest.mark.parametrize("n", [5, 128, 300])
def test_the_chunked_loss_is_the_plain_one(n):
    mx.set_default_device(mx.cpu)
    mx.random.seed(0)
    head = nn.Linear(16, 211, bias=False)
    hidden, targets = mx.random.normal((n, 16)), mx.random.randint(0, 211, (n,))
    weights = (mx.random.uniform(shape=(n,)) > 0.3).astype(mx.float32)
    plain = mx.value_and_grad(lambda h: cross_entropy_sum(head(h), targets, weights))(hidden)
    ours = mx.value_and_grad(lambda h: linear_cross_entropy(head, h, targets, weights))(hidden)
    assert ours[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
    assert mx.abs(ours[1] - plain[1]).max().item() < 1e-6


def test_a_trained_head_gets_its_gradient():
    mx.set_default_device(mx.cpu)
    mx.random.seed(0)
    head = nn.Linear(16, 211, bias=False)
    hidden, targets, weights = mx.random.normal((300, 16)), mx.random.randint(0, 211, (300,)), mx.ones((300,))
    plain = nn.value_and_grad(head, lambda head: cross_entropy_sum(head(hidden), targets, weights))(head)
    ours = nn.value_and_grad(head, lambda head: linear_cross_entropy(head, hidden, targets, weights, trained=head))(
        head
    )
    assert ours[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
    assert mx.abs(ours[1]["weight"] - plain[1]["weight"]).max().item() < 1e-5


def test_untied_and_capped_heads_are_found():
    assert find_body(tiny_llama(tie_word_embeddings=False), 97).head_module is not None
    model = tiny_llama()
    assert find_body(model, 97).head_module is model.model.embed_tokens


def test_a_model_whose_parts_cannot_be_told_is_trained_whole():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_llama()

        @property
        def layers(self):
            return self.inner.layers

        def __call__(self, tokens, cache=None):
            return self.inner(tokens, cache)

    body = find_body(Whole(), 97)
    assert body.head is None
    batch = make_batch([random_examples(2)], 64)
    whole = stepper(body, packed=True).loss(batch)
    parts = stepper(find_body(tiny_llama(), 97), packed=True).loss(batch)
    assert whole.item() == pytest.approx(parts.item(), rel=1e-5)


def test_arrays_of_a_batch_are_padded_to_few_shapes():
    from finetune.steps import Arrays

    arrays = Arrays.of(make_batch([random_examples(2)], 64))
    assert arrays.places.shape == (128,)
    assert np.array(arrays.weights).sum() == sum(example.n_supervised for example in random_examples(2))


@pytest.mark.parametrize("n_lanes", [2, 3])
def test_lanes_change_nothing(reference, n_lanes):
    examples, expected, expected_gradient = reference
    model, body = adapted()
    batch = make_batch([examples[i::4] for i in range(4)], 256)
    lanes = Lanes().first(n_lanes)
    parts = [part for _, part in lanes.split(batch, packed=True)]
    assert [part.inputs.shape for part in parts] == [(1, part.n_tokens) for part in parts]
    assert max(part.n_tokens for part in parts) - min(part.n_tokens for part in parts) < 64
    made = Stepper(body, packed=True, fused=False, checkpointed=[], compute=mx.float32, compiled=False, lanes=lanes)
    parameters = model.trainable_parameters()
    loss, gradient = made.loss_and_gradient(parameters, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert made.loss(batch).item() == pytest.approx(expected, rel=1e-5)
    assert largest_difference(dict(tree_flatten(gradient)), expected_gradient) < 1e-5
    again = made.loss_and_gradient(parameters, batch)
    assert again[0].item() == loss.item()
    for (_, one), (_, other) in zip(tree_flatten(gradient), tree_flatten(again[1]), strict=True):
        assert mx.array_equal(one, other).item()


def test_a_batch_with_fewer_rows_than_lanes():
    model, body = adapted()
    batch = make_batch([random_examples(1)], 128)
    alone = stepper(body, packed=False).loss_and_gradient(model.trainable_parameters(), batch)[0].item()
    assert len(Lanes().first(4).split(batch, packed=False)) == 1
    made = Stepper(
        body, packed=False, fused=False, checkpointed=[], compute=mx.float32, compiled=False, lanes=Lanes().first(4)
    )
    assert made.loss_and_gradient(model.trainable_parameters(), batch)[0].item() == alone


@pytest.mark.parametrize("window", [None, 100])
def test_long_documents_are_computed_in_blocks(window):
    """Both ways of attention agree on a document that is cut into blocks of queries, values and gradients."""
    mx.random.seed(7)
    n, length = 700, 768
    q, k, v, cotangent = (mx.random.normal((1, heads, length, 16)) for heads in (4, 2, 2, 4))
    segments = np.zeros((1, length), np.int32)
    segments[0, :n], segments[0, n : n + 40] = 1, 2

    def packed(cache):
        def run(q, k, v):
            mask = cache.make_mask(length, window_size=window)
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)

        return mx.vjp(run, [q, k, v], [cotangent * mx.array(segments > 0)[:, None, :, None]])

    with document_attention():
        ours = packed(DocumentCache(segments))
    plain = packed(PackedCache(mx.array(segments)))
    real = mx.array(segments > 0)[:, None, :, None]
    for one, other in zip([ours[0][0], *ours[1]], [plain[0][0], *plain[1]], strict=True):
        assert mx.abs((one - other) * real).max().item() < 2e-5 * mx.abs(other * real).max().item()
