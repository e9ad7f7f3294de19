"""How much of what a tensor says is lost at a type, seen through the inputs that it really gets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quant.child import CheckCancelled
from quant.imatrix.file import ImportanceMatrix
from quant.tensors.dtypes import to_float32
from quant.tensors.gguf_reader import GGUFSource

_CHUNK = 1 << 21  # weights held at once, in each of two models

Array = np.ndarray[Any, np.dtype[Any]]


def relative_errors(
    source: Path,
    quantized: Path,
    names: Sequence[str],
    imatrix: ImportanceMatrix | None,
    *,
    check_cancelled: CheckCancelled,
) -> dict[str, float]:
    """The expected squared error of each tensor's outputs, over their expected square.

    With independent inputs x that is sum_j E[x_j^2] (w - q)_j^2 over sum_j E[x_j^2] w_j^2: the importance matrix holds
    E[x_j^2]. Without one every input counts the same.

    Args:
        source: The model.
        quantized: The same with quantized tensors.
        names: Which.
        imatrix: Mean squared inputs, or None.
        check_cancelled: Called before every few million weights.
    """
    weights = imatrix.weights() if imatrix else {}
    with GGUFSource(source) as before, GGUFSource(quantized) as after:
        return {name: _relative_error(name, before, after, weights, check_cancelled) for name in names}


def _relative_error(
    name: str, before: GGUFSource, after: GGUFSource, weights: Mapping[str, Array], check_cancelled: CheckCancelled
) -> float:
    tensor = before.tensors[name]
    n_columns, n_rows = tensor.n_columns, tensor.n_rows
    importance = _importance(weights.get(name), n_columns, tensor.shape)
    n_matrices = importance.shape[0]
    rows_each = n_rows // n_matrices
    step = max(_CHUNK // n_columns, 1)
    lost = signal = 0.0
    for matrix in range(n_matrices):
        for start in range(matrix * rows_each, (matrix + 1) * rows_each, step):
            check_cancelled()
            stop = min(start + step, (matrix + 1) * rows_each)
            exact = to_float32(before.read_rows(name, start, stop), tensor.type_name)
            difference = exact - to_float32(after.read_rows(name, start, stop), after.tensors[name].type_name)
            lost += float(np.square(difference).sum(axis=0, dtype=np.float64) @ importance[matrix])
            signal += float(np.square(exact).sum(axis=0, dtype=np.float64) @ importance[matrix])
    return lost / signal if signal else 0.0


def _importance(found: Array | None, n_columns: int, shape: tuple[int, ...]) -> Array:
    """Of shape (matrices, columns): a stack of experts has one row each."""
    n_matrices = shape[0] if len(shape) > 2 else 1
    if found is None or found.size != n_matrices * n_columns:
        return np.ones((1, n_columns))
    return found.astype(np.float64).reshape(n_matrices, n_columns)
