"""MLX's device and speed, from inside a process of its own: ``python -P -m localllm.checkup.probe``.

Importing a native library can end the process, and costs time and memory: so the doctor never does it itself. The BLAS
is the one that ``LOCALLLM_BLAS`` names. Prints one JSON object.
"""

import json
import sys
import time

from localllm.machine import preload_blas

_ROWS = 512  # of a square float32 matrix: 2.7e8 operations, 60 ms at the 5 GFLOP/s of the reference BLAS
_ROUNDS = 4


def probe_mlx() -> dict[str, object]:
    """MLX's device, and its speed in float32 matrix products, in GFLOP/s."""
    preload_blas()
    import mlx.core as mx  # deferred: this is what is probed, and the BLAS has to come first

    matrix = mx.random.normal((_ROWS, _ROWS))
    mx.eval(matrix)
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        mx.eval(matrix @ matrix)
        seconds.append(time.perf_counter() - started)
    return {"device": str(mx.default_device().type).rpartition(".")[2], "gflops": 2 * _ROWS**3 / min(seconds) / 1e9}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe_mlx()) + "\n")
