"""A model that was quantized once, made to look as if it never had been.

    python -m benchmarks.off_grid MODEL.gguf off-grid.gguf

The weights of a quantized model lie on the grid of its type, which that type then meets exactly and no other does: what
unpacked such a model is no fair ground to compare types on. Here every weight moves to a random place within its cell:
by up to half the distance between two neighbours of the grid. That is a little worse as a model (as much as quantizing
it was), and as good as any to be the source of others.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.rewrite import Array, rewrite

_BLOCK = 16  # weights with one grid, in all types


def off_grid(weights: Array, rng: np.random.Generator) -> Array:
    """Weights with uniform noise as wide as the grid that they lie on.

    Args:
        weights: Float32, (rows, columns); columns a multiple of 16.
        rng: Of the noise.
    """
    blocks = weights.reshape(-1, _BLOCK)
    gaps = np.diff(np.sort(blocks, axis=-1), axis=-1)
    # Equal weights are no neighbours, and neither are those that rounding tells apart.
    least = 1e-4 * np.abs(blocks).max(axis=-1, keepdims=True)
    gaps = np.where(gaps > least, gaps, np.inf).min(axis=-1, keepdims=True)
    cells = np.where(np.isfinite(gaps), gaps, 0)
    noise = rng.random(blocks.shape, dtype=np.float32) - np.float32(0.5)
    return (blocks + cells * noise).reshape(weights.shape)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rewrite(args.source, args.target, lambda _, values: off_grid(values, rng) if values.ndim > 1 else values)


if __name__ == "__main__":
    main()
