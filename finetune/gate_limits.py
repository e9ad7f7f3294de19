"""How far an exported form may be from what was trained.

Set beside measurements on SmolLM2-135M, which rounding hurts more than most (docs/LOG.md has the figures). Where few
bits are allowed much, the plain weights that they were rounded from are held to the strict limits.
"""

from dataclasses import dataclass

from quant.llama_types import ALIASES, FILE_TYPES


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        agreement: At least this share of tokens is put first by both.
        kl: At most this mean divergence, in nats.
    """

    agreement: float
    kl: float


# From how many bits a weight on.
_BY_BITS = (
    (16.0, Limits(0.99, 0.001)),
    (8.0, Limits(0.97, 0.01)),
    (5.0, Limits(0.88, 0.1)),
    (4.0, Limits(0.85, 0.1)),
    (3.0, Limits(0.70, 0.5)),
    (0.0, Limits(0.30, 3.0)),
)
# Weights of 8 bits and less make llama.cpp round what they are multiplied with, too.
_ROUNDED = Limits(0.97, 0.01)
_BF16 = Limits(0.98, 0.002)


def limits_for(kind: str) -> Limits:
    """For weights of a type: ``f16``, ``q4_k_m``, ``4bit``.

    A type that nobody knows gets the limits of 4 bits.
    """
    name = kind.lower()
    if name == "bf16":
        return _BF16
    known = FILE_TYPES.get(ALIASES.get(name, name))
    if known is not None:
        bits = known.bits
    else:
        digits = name.removesuffix("bit")
        bits = float(digits) if digits.isdecimal() else 4.0
    return next(limits for least, limits in _BY_BITS if bits >= least)


def limits_for_adapter(kind: str) -> Limits:
    """For an adapter beside a model whose weights are of a type: those are the same on both sides."""
    limits = limits_for(kind)
    return limits if limits.agreement > _ROUNDED.agreement else _ROUNDED
