"""What a run will need in memory and time, measured on a few made-up tokens before it starts.

Formulas for activations differ by architecture; two tiny steps do not lie. Memory grows with the tokens of a forward
pass, so the peaks of a short and a longer one give a line, which is followed to the wanted size.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from finetune.examples import Example
from finetune.optimizer import Tree
from finetune.packing import make_batch
from finetune.steps import Stepper
from localllm.errors import MemoryFitError
from localllm.memory import gigabytes

_SHORT, _LONG = 128, 256
# The allocator keeps freed buffers, and batches differ: what was predicted is given this much room.
_MARGIN = 1.15


@dataclass(frozen=True)
class Probe:
    """Two measured points.

    Attributes:
        fixed: Bytes for weights, gradients and the optimizer.
        per_token: Bytes for each token of a forward pass beyond that.
        seconds_per_token: Of a forward and backward pass.
    """

    fixed: int
    per_token: float
    seconds_per_token: float

    def peak(self, n_tokens: int) -> int:
        """Predicted peak of a pass over ``n_tokens``, in bytes."""
        return int(_MARGIN * (self.fixed + self.per_token * n_tokens))

    def largest(self, budget: int) -> int:
        """Tokens of the largest pass that fits in ``budget`` bytes."""
        return int((budget / _MARGIN - self.fixed) / self.per_token) if budget / _MARGIN > self.fixed else 0


def probe(stepper: Stepper, parameters: Tree, lengths: Sequence[int], n_vocab: int, optimizer_bytes: int) -> Probe:
    """Measure two steps on random tokens.

    Args:
        stepper: As the run will use it.
        parameters: The trained weights.
        lengths: Of real documents: those of the probe are as long as their median.
        n_vocab: Token ids below this exist.
        optimizer_bytes: What its state will take; it has none yet.
    """
    typical = int(np.median(lengths)) if len(lengths) else 64
    n_rows = stepper.lanes.n_rows
    points = []
    for n_tokens in (_SHORT, _SHORT, _LONG):  # the first warms up
        batch = make_batch([_documents(n_tokens, typical, n_vocab)] * n_rows, n_tokens)
        mx.clear_cache()
        mx.reset_peak_memory()
        began = time.perf_counter()
        mx.eval(stepper.loss_and_gradient(parameters, batch))
        points.append((mx.get_peak_memory(), time.perf_counter() - began))
    (short, quick), (long, slow) = points[1:]
    few, many = n_rows * _SHORT, n_rows * _LONG
    per_token = max(1.0, (long - short) / (many - few))
    fixed = max(0, short - per_token * few) + optimizer_bytes
    return Probe(int(fixed), per_token, max(slow / many, (slow - quick) / (many - few)))


def _documents(n_tokens: int, typical: int, n_vocab: int) -> list[Example]:
    """Documents of about ``typical`` tokens that fill ``n_tokens`` positions, every token supervised."""
    rng = np.random.default_rng(0)
    documents = []
    while n_tokens >= 2:
        n = min(n_tokens, max(2, typical))
        documents.append(Example(rng.integers(0, n_vocab, n + 1).astype(np.int32), np.ones(n + 1, np.bool_)))
        n_tokens -= n
    return documents


# A pass is one evaluation, and macOS ends a process that keeps the GPU from drawing the screen for some seconds. The
# rest of a batch comes in the next pass: what an update learns from stays the same.
GPU_PASS_SECONDS = 1.0


@dataclass(frozen=True)
class Fitted:
    """How a run fits.

    Attributes:
        checkpointing: Which blocks are computed again.
        micro_tokens: Positions of a forward pass.
        predicted: Peak bytes.
        seconds_per_token: Measured.
        note: What had to give way; empty where nothing did.
    """

    checkpointing: str
    micro_tokens: int
    predicted: int
    seconds_per_token: float
    note: str = ""


def fit_run(
    measure: Callable[[str], Probe],
    choices: Sequence[str],
    wanted: int,
    capacity: int,
    budget: int,
    pass_seconds: float = math.inf,
) -> Fitted:
    """The fastest way that fits: the wanted batch, else a smaller one, else with more blocks computed again.

    Args:
        measure: Probes one way of checkpointing.
        choices: Ways to try, the fastest first.
        wanted: Positions of a forward pass.
        capacity: Positions of a row, which is the least.
        budget: Bytes of memory to use.
        pass_seconds: What a forward and backward pass may take, where a row allows it; see :data:`GPU_PASS_SECONDS`.

    Raises:
        MemoryFitError: One row does not fit even when all blocks are computed again.
    """
    for which in choices:
        measured = measure(which)
        rows = min(wanted, measured.largest(budget)) // capacity
        if rows >= 1:
            notes = [] if rows >= wanted // capacity else [f"batches of {rows * capacity} tokens instead of {wanted}"]
            notes += [] if which == choices[0] else [f"{which} blocks are computed again"]
            note = f"To fit in memory: {', '.join(notes)}." if notes else ""
            quick = int(min(pass_seconds / max(measured.seconds_per_token, 1e-9), wanted)) // capacity
            micro = max(1, min(rows, quick)) * capacity
            return Fitted(which, micro, measured.peak(micro), measured.seconds_per_token, note)
    raise MemoryFitError(
        f"Training on rows of {capacity} tokens needs about {gigabytes(measured.peak(capacity))}, "
        f"and {gigabytes(budget)} may be used.",
        "Use a smaller model, a 4-bit one, or a shorter --max-length.",
    )
