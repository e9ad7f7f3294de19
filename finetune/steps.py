"""One forward and backward pass over a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from finetune.attention import packed_caches
from finetune.body import Body
from finetune.document_attention import DocumentCache, document_attention
from finetune.exponentials import fast_exponentials
from finetune.lanes import Lanes
from finetune.losses import cross_entropy_sum, linear_cross_entropy
from finetune.optimizer import Tree
from finetune.packing import Batch
from finetune.recompute import recomputed

# Supervised tokens are padded to a multiple of this, so that a compiled step is traced for few shapes.
_ROUND = 128


@dataclass(frozen=True)
class Arrays:
    """A batch on the device.

    Attributes:
        inputs: int32 (rows, length).
        segments: int32 (rows, length).
        places: int32 (n,): where in the flattened batch the supervised positions are.
        targets: int32 (n,): their targets.
        weights: fp32 (n,): 1, and 0 for what fills n up to a multiple of 128.
    """

    inputs: mx.array
    segments: mx.array
    places: mx.array
    targets: mx.array
    weights: mx.array

    @classmethod
    def of(cls, batch: Batch) -> "Arrays":
        """The arrays of a batch."""
        places = np.flatnonzero(batch.supervised)
        n = max(_ROUND, -(-len(places) // _ROUND) * _ROUND)
        filled = np.zeros(n, np.int32)
        filled[: len(places)] = places
        targets = np.zeros(n, np.int32)
        targets[: len(places)] = batch.targets.reshape(-1)[places]
        weights = (np.arange(n) < len(places)).astype(np.float32)
        return cls(*(mx.array(a) for a in (batch.inputs, batch.segments, filled, targets, weights)))

    def __iter__(self) -> Any:
        """The arrays in order, as arguments of a function."""
        return iter((self.inputs, self.segments, self.places, self.targets, self.weights))


class Stepper:
    """Losses and gradients of a model.

    Args:
        body: The model.
        packed: Rows hold several documents.
        fused: The device has fused kernels; else attention is computed a document at a time, and exponentials are ours.
        checkpointed: Blocks to compute again in the backward pass.
        compute: Float type of the trained weights in the passes; their own copy stays fp32.
        compiled: Trace the pass once for each shape. On a CPU that would need a C++ compiler and gains nothing.
        head_is_trained: The output layer is among the trained weights.
        lanes: Streams that share the documents of a batch; None for the default stream.
    """

    def __init__(
        self,
        body: Body,
        *,
        packed: bool,
        fused: bool,
        checkpointed: list[nn.Module],
        compute: mx.Dtype,
        compiled: bool,
        head_is_trained: bool = False,
        lanes: Lanes | None = None,
    ) -> None:
        self._body = body
        self._packed = packed
        self._fused = fused
        self._checkpointed = checkpointed
        self._compute = compute
        self._trained = body.head_module if head_is_trained else None
        self.lanes = lanes or Lanes()
        gradient: Callable[..., tuple[mx.array, Tree]] = mx.value_and_grad(self._loss_of)
        # Dropout draws from the random state, so it goes into a compiled pass and comes out.
        compile_ = partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)
        self._gradient = compile_(gradient) if compiled else gradient

    def loss_and_gradient(self, parameters: Tree, batch: Batch) -> tuple[mx.array, Tree]:
        """The summed loss of the batch's supervised tokens in nats, and its gradient by ``parameters`` (fp32)."""
        total: tuple[mx.array, Tree] | None = None
        with recomputed(self._checkpointed), self._kernels():
            try:
                for stream, rows in self.lanes.split(batch, packed=self._packed):
                    with mx.stream(stream) if stream else nullcontext():
                        part = self._gradient(parameters, *Arrays.of(rows))
                    total = part if total is None else tree_map(lambda a, b: a + b, total, part)
            finally:
                self._body.model.update(parameters)  # tracing leaves tracers in the model
        assert total is not None, "a batch has rows"
        return total

    def loss(self, batch: Batch) -> mx.array:
        """The summed loss alone."""
        total = mx.array(0.0)
        with self._kernels():
            for stream, rows in self.lanes.split(batch, packed=self._packed):
                with mx.stream(stream) if stream else nullcontext():
                    part = self._loss(*Arrays.of(rows))
                total = total + part
        return total

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        """What stands in for a GPU's kernels where there is none."""
        with ExitStack() as stack:
            if not self._fused:
                stack.enter_context(document_attention())
                stack.enter_context(fast_exponentials(self._body.model))
            yield

    def _loss_of(self, parameters: Tree, *arrays: mx.array) -> mx.array:
        self._body.model.update(tree_map(lambda p: p.astype(self._compute), parameters))
        return self._loss(*arrays)

    def _loss(
        self, inputs: mx.array, segments: mx.array, places: mx.array, targets: mx.array, weights: mx.array
    ) -> mx.array:
        hidden = self._body.run(inputs, self._caches(segments))
        hidden = hidden.reshape(-1, hidden.shape[-1])[places]
        if self._body.head is None:
            return cross_entropy_sum(hidden, targets, weights)
        return linear_cross_entropy(self._body.head, hidden, targets, weights, trained=self._trained)

    def _caches(self, segments: mx.array) -> Sequence[Any] | None:
        n_layers = len(self._body.model.layers)
        if not self._packed:
            return None
        # Never traced there: a compiled step would know the documents of its first batch for ever.
        return packed_caches(segments, n_layers) if self._fused else [DocumentCache(np.array(segments))] * n_layers
