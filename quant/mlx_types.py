"""The types that MLX models can be quantized to, by the names that a person writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from localllm.errors import UsageError


@dataclass(frozen=True)
class MLXType:
    """How the weights are stored, and how that is found.

    Attributes:
        bits: Of a weight; of a mixed type the usual number.
        group_size: Weights that share a scale.
        mode: MLX's: ``affine``, ``mxfp4``, ``nvfp4`` or ``mxfp8``.
        mixed: mlx-lm's recipe of two widths; empty for one width.
        learned: ``awq`` or ``dwq`` where the weights are fitted to text; empty where they are rounded.
        what: One line for a list.
    """

    bits: int
    group_size: int = 64
    mode: str = "affine"
    mixed: str = ""
    learned: str = ""
    what: str = ""


def _affine(bits: int) -> MLXType:
    return MLXType(bits, what=f"{bits} bits, a scale and a bias for 64 weights")


def _mixed(low: int, high: int) -> MLXType:
    what = f"{low} bits, {high} where it matters most (some values and down projections, the output)"
    return MLXType(low, mixed=f"mixed_{low}_{high}", what=what)


MLX_TYPES: Mapping[str, MLXType] = MappingProxyType(
    {
        **{f"mlx-{bits}bit": _affine(bits) for bits in (2, 3, 4, 5, 6, 8)},
        "mlx-mixed": _mixed(4, 6),
        "mlx-mixed-2-6": _mixed(2, 6),
        "mlx-mixed-3-4": _mixed(3, 4),
        "mlx-mixed-3-6": _mixed(3, 6),
        "mlx-mixed-4-6": _mixed(4, 6),
        "mxfp4": MLXType(4, 32, "mxfp4", what="4-bit floats, a power of two for 32 weights"),
        "nvfp4": MLXType(4, 16, "nvfp4", what="4-bit floats, an 8-bit float for 16 weights"),
        "mxfp8": MLXType(8, 32, "mxfp8", what="8-bit floats, a power of two for 32 weights"),
        "mlx-awq": MLXType(4, learned="awq", what="4 bits, weights scaled by what they are fed (AWQ)"),
        "mlx-dwq": MLXType(4, learned="dwq", what="4 bits, scales and biases distilled from the source (DWQ)"),
    }
)


def find_mlx_type(name: str) -> MLXType:
    """The type of that name.

    Raises:
        UsageError: There is none.
    """
    found = MLX_TYPES.get(_plain(name))
    if found is None:
        raise UsageError(f"{name!r} is no type of MLX's.", f"Choose from {', '.join(MLX_TYPES)}.")
    return found


def mlx_type_name(text: str) -> str:
    """The name of the MLX type that a person means (``MLX-4bit``, ``mlx_4bit``); empty where they mean none of MLX's.

    Raises:
        UsageError: They mean one of MLX's, and there is none of that name.
    """
    plain = _plain(text)
    if plain not in MLX_TYPES and plain.startswith("mlx"):
        find_mlx_type(text)
    return plain if plain in MLX_TYPES else ""


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")
