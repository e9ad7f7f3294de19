"""Which kernel a BLAS takes, whether its product is right, and how fast it is.

``python -P -m localllm.native.blas_probe LIBRARY``, a process of its own: the library reads ``OPENBLAS_CORETYPE`` as it
is loaded, and a kernel for another processor ends it. Prints one JSON object.
"""

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112  # of CBLAS
_SIDE = 1024  # of the square product that is timed: 2.1 GFLOP
_SECONDS = 0.3
# Rows, inner length, columns: edges that no block divides, and a row as decoding has it.
_SHAPES = ((64, 96, 128), (131, 257, 67), (1, 576, 1536), (1030, 33, 517))
_TOLERANCE = 1e-5  # of the largest value, in float32

Array = np.ndarray[Any, np.dtype[np.float32]]


class CBlas:
    """``cblas_sgemm`` of a library.

    Args:
        library: What the loader takes.

    Raises:
        OSError: It cannot be loaded.
    """

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        self._sgemm = self._library.cblas_sgemm
        number, pointer, real = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
        sizes = [number] * 6
        self._sgemm.argtypes = [*sizes, real, pointer, number, pointer, number, real, pointer, number]
        self._sgemm.restype = None

    @property
    def file(self) -> str:
        """The file that the loader took, as the kernel's map of this process has it; empty where there is no map."""
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        address = ctypes.cast(self._sgemm, ctypes.c_void_p).value or 0
        for line in lines:
            bounds, *_, name = line.split(maxsplit=5)
            first, _, last = bounds.partition("-")
            if int(first, 16) <= address < int(last, 16):
                return name
        return ""

    @property
    def kernel(self) -> str:
        """The kernel that OpenBLAS took; empty of another library."""
        if not hasattr(self._library, "openblas_get_corename"):
            return ""
        self._library.openblas_get_corename.restype = ctypes.c_char_p
        return str(self._library.openblas_get_corename().decode(errors="replace"))

    def product(self, a: Array, b: Array, *, transposed: bool = False) -> Array:
        """``a @ b``, or ``a @ b.T``; float32 of shape (rows, columns)."""
        rows, inner = a.shape
        columns = b.shape[0] if transposed else b.shape[1]
        result = np.zeros((rows, columns), np.float32)
        how = _TRANSPOSED if transposed else _PLAIN
        self._sgemm(
            *(_ROW_MAJOR, _PLAIN, how, rows, columns, inner),
            *(1.0, a.ctypes.data, inner, b.ctypes.data, b.shape[1], 0.0, result.ctypes.data, columns),
        )
        return result


def largest_error(blas: CBlas) -> float:
    """How far products are from NumPy's in float64, as a share of the largest value; infinity without numbers."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for rows, inner, columns in _SHAPES:
        a = rng.standard_normal((rows, inner), np.float32)
        b = rng.standard_normal((inner, columns), np.float32)
        exact = a.astype(np.float64) @ b.astype(np.float64)
        for found in (blas.product(a, b), blas.product(a, np.ascontiguousarray(b.T), transposed=True)):
            error = float(np.abs(found - exact).max() / np.abs(exact).max())
            worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def gflops(blas: CBlas) -> float:
    """Billions of operations a second in a large product: the best of some tries."""
    matrix = np.random.default_rng(1).standard_normal((_SIDE, _SIDE), np.float32)
    blas.product(matrix, matrix)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        started = time.perf_counter()
        blas.product(matrix, matrix)
        best = min(best, time.perf_counter() - started)
    return 2 * _SIDE**3 / best / 1e9


def main(argv: list[str]) -> int:
    """Probe the library named by ``argv[0]``."""
    blas = CBlas(argv[0])
    error = largest_error(blas)
    facts = {"kernel": blas.kernel, "file": blas.file, "right": error <= _TOLERANCE, "error": error}
    sys.stdout.write(json.dumps(facts | {"gflops": gflops(blas)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
