"""AWQ and DWQ by mlx-lm's own code, on texts that the caller gives: nothing is downloaded, nothing is printed.

AWQ (https://arxiv.org/abs/2306.00978) scales weights by what they are fed before they are rounded; DWQ distils the
scales and biases of the quantized model from the model it came from.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from localllm.errors import InvalidModelError, UsageError
from quant.mlx_types import MLXType

OnStep = Callable[[str, int, int | None], None]
OnCheck = Callable[[], None]
OnNotice = Callable[[str], None]

_EMBEDDING_GROUP = 32  # what mlx-lm's AWQ packs embeddings in, 4 bits
_LEARNING_RATE = 1e-6
_VALIDATION = re.compile(r"Validation: .*loss=(?P<loss>[\d.]+|nan|inf)")


@dataclass(frozen=True)
class Samples:
    """Texts to fit to.

    Attributes:
        texts: Any number of them.
        count: How many sequences are used, at most.
        length: Tokens of one.
        seed: Of the choice among them, and of the order.
    """

    texts: tuple[str, ...]
    count: int = 128
    length: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Watch:
    """Who is told, and who may stop it.

    Attributes:
        progress: Told of the stage, steps done and steps in all.
        check_cancelled: Called at each step; an exception from it ends the work.
        notice: Told what a person should know about the result.
    """

    progress: OnStep
    check_cancelled: OnCheck
    notice: OnNotice


def sequences(tokenizer: Any, samples: Samples) -> Any:
    """Token ids cut into sequences, in random order: mx.array (sequences, length), int32.

    Raises:
        UsageError: There is less text than one sequence.
    """
    import mlx.core as mx  # deferred: 0.1 s, in processes that never quantize

    tokens = [token for text in samples.texts for token in tokenizer.encode(text, add_special_tokens=False)]
    n = len(tokens) // samples.length
    if not n:
        raise UsageError(
            f"The texts have {len(tokens)} tokens; {samples.length} are the least that can be learned from.",
            "Give more text.",
        )
    rows = mx.array(tokens[: n * samples.length], mx.int32).reshape(n, samples.length)
    return rows[mx.random.permutation(n, key=mx.random.key(samples.seed))[: samples.count]]


def quantize_awq(model: Any, config: dict[str, Any], kind: MLXType, rows: Any, watch: Watch) -> dict[str, Any]:
    """Quantize a model in place; returns its config.json with ``quantization``.

    Raises:
        InvalidModelError: mlx-lm's AWQ does not know the architecture, or rows do not fill groups.
    """
    import mlx_lm.quant.awq as awq  # deferred: mlx-lm brings transformers, 2 s

    recipe = awq.AWQ_MODEL_CONFIGS.get(config["model_type"])
    if recipe is None:
        known = ", ".join(sorted(awq.AWQ_MODEL_CONFIGS))
        raise InvalidModelError(f"AWQ is not made for {config['model_type']} models.", f"It is for {known}.")
    _check_groups(model, kind.group_size)
    with _quiet(awq, "blocks", watch):
        awq.awq_quantize(
            model,
            rows,
            recipe,
            group_size=kind.group_size,
            bits=kind.bits,
            embed_group_size=_EMBEDDING_GROUP,
        )
        found: dict[str, Any] = awq.update_config(model, dict(config))
    settings = {path: own for path, own in found["quantization"].items() if own is not False}
    return {**found, "quantization": settings | {"group_size": kind.group_size, "bits": kind.bits}}


def distil(student: Any, teacher: Any, rows: Any, watch: Watch, dtype: Any, seed: int = 0) -> None:
    """Learn a quantized model's scales and biases from the model it came from.

    Args:
        student: Quantized; changed in place.
        teacher: The same before.
        rows: From :func:`sequences`; an eighth of them, at least one, only judges.
        watch: Told of steps.
        dtype: mx.Dtype to compute in.
        seed: Of the batches' order.

    Raises:
        UsageError: There are fewer than two sequences.
    """
    import mlx.optimizers as optimizers  # deferred, with mlx-lm
    import mlx_lm.quant.dwq as dwq

    data = [(row, 0) for row in rows.tolist()]
    n_valid = max(1, len(data) // 8)
    if len(data) < 2:
        raise UsageError("One sequence is too little to distil from.", "Give more text.")
    valid, train = data[:n_valid], data[n_valid:]
    with _quiet(dwq, "distil", watch) as written:
        dwq.dwq_quantize(
            student,
            lambda batch, _step, split: teacher(batch),  # noqa: ARG005 - mlx-lm passes it by this name
            optimizers.Adam(learning_rate=_LEARNING_RATE, bias_correction=True),
            train,
            valid,
            batch_size=min(4, len(train), len(valid)),
            max_seq_length=rows.shape[1] + 1,
            seed=seed,
            dtype=dtype,
        )
    losses = [float(match["loss"]) for text in written if (match := _VALIDATION.search(text))]
    if losses and not losses[-1] <= losses[0]:
        watch.notice(f"Distilling did not help: the loss on unseen text went from {losses[0]} to {losses[-1]}.")


def _check_groups(model: Any, group_size: int) -> None:
    from mlx.utils import tree_flatten  # deferred, with mlx

    for name, value in tree_flatten(model.parameters()):
        if value.ndim > 1 and value.shape[-1] % group_size:
            raise InvalidModelError(
                f"The rows of {name} have {value.shape[-1]} weights, which do not fill groups of {group_size}.",
                "Choose mlx-4bit, which leaves such matrices as they are.",
            )


@contextmanager
def _quiet(module: ModuleType, stage: str, watch: Watch) -> Iterator[list[str]]:
    """Run mlx-lm's code with its bars reported instead of drawn; yields what it wrote."""
    bars = _Bars(stage, watch)
    original = vars(module)["tqdm"]
    vars(module)["tqdm"] = bars  # the only hook that the code has; this process does nothing else meanwhile
    try:
        with redirect_stdout(io.StringIO()):
            yield bars.written
    finally:
        vars(module)["tqdm"] = original


class _Bars:
    """Stands in for tqdm."""

    def __init__(self, stage: str, watch: Watch) -> None:
        self._stage, self._watch = stage, watch
        self.written: list[str] = []

    def __call__(self, items: Iterable[Any], total: int | None = None, desc: str = "", **_: object) -> "_Bar":
        count = total if total is not None or not isinstance(items, Sequence) else len(items)
        return _Bar(items, desc or self._stage, count, self._watch)

    def write(self, text: str, **_: object) -> None:
        self.written.append(text)


@dataclass(frozen=True)
class _Bar:
    items: Iterable[Any]
    stage: str
    total: int | None
    watch: Watch

    def __iter__(self) -> Iterator[Any]:
        for n, item in enumerate(self.items):
            self.watch.check_cancelled()
            yield item
            self.watch.progress(self.stage, n + 1, self.total)

    def set_description(self, **_: object) -> None:
        """What tqdm would draw beside the bar."""
