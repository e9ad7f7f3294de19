"""A LoRA adapter in memory, whichever form it came in: W + scale * B A for each changed module."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.tensors.source import Array


@dataclass(frozen=True)
class LoraPair:
    """What changes one module, whose W is (outputs, inputs) as Hugging Face stores it.

    Attributes:
        a: (rank, inputs), float32; of a mixture's stack (experts, rank, inputs). Of an embedding, inputs are tokens.
        b: (outputs, rank), float32; (experts, outputs, rank).
        scale: Of their product.
    """

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        """Rank of the product."""
        return int(self.b.shape[-1])


@dataclass(frozen=True)
class Lora:
    """An adapter.

    Attributes:
        pairs: By the module's name in MLX, ``model.layers.0.self_attn.q_proj``.
        base: What it calls the model that it is for; may be empty.
    """

    pairs: Mapping[str, LoraPair]
    base: str = ""

    def even(self) -> "EvenLora":
        """The same with one rank and one scale for all, as every form but PEFT's wants it.

        An adapter that is so already keeps its every bit. A smaller rank is filled up with zeros; a scale of its own
        goes into B.
        """
        rank = max(pair.rank for pair in self.pairs.values())
        scale = next((pair.scale for pair in self.pairs.values() if pair.scale), 1.0)
        pairs = {}
        for name, pair in self.pairs.items():
            missing = rank - pair.rank
            lead = [(0, 0)] * (pair.a.ndim - 2)
            a = np.pad(pair.a, [*lead, (0, missing), (0, 0)]) if missing else pair.a
            b = np.pad(pair.b, [*lead, (0, 0), (0, missing)]) if missing else pair.b
            b = b if pair.scale == scale else (b * np.float32(pair.scale / scale)).astype(np.float32)
            pairs[name] = LoraPair(a, b, scale)
        return EvenLora(pairs, rank, scale, self.base)


@dataclass(frozen=True)
class EvenLora:
    """An adapter of one rank and one scale.

    Attributes:
        pairs: As in :class:`Lora`.
        rank: Of each.
        scale: Of each.
        base: As in :class:`Lora`.
    """

    pairs: Mapping[str, LoraPair]
    rank: int
    scale: float
    base: str


def check_pair(name: str, a: Array | None, b: Array | None) -> tuple[Array, Array]:
    """Both halves of a pair.

    Raises:
        InvalidModelError: One is missing, or they do not fit together.
    """
    if a is None or b is None:
        raise InvalidModelError(f"The adapter is damaged: {one_line(name, 80)} has only one half of its pair.")
    if a.ndim != b.ndim or a.ndim not in (2, 3) or a.shape[-2] != b.shape[-1] or a.shape[:-2] != b.shape[:-2]:
        raise InvalidModelError(f"The adapter is damaged: the two halves of {one_line(name, 80)} do not fit together.")
    return a, b
