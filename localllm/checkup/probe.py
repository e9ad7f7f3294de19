"""A look at an engine from inside a process of its own: ``python -P -m localllm.checkup.probe llama|mlx [BLAS]``.

Importing a native library can end the process, and costs time and memory: so the doctor never does it itself.
Prints one JSON object.
"""

import ctypes
import json
import sys
import time

_ROWS = 512  # of a square float32 matrix: 2.7e8 operations, 60 ms at the 5 GFLOP/s of the reference BLAS
_ROUNDS = 4


def probe_llama() -> dict[str, object]:
    """What llama.cpp was built with, and what it can use."""
    import llama_cpp  # deferred: this is what is probed

    return {
        "system": llama_cpp.llama_print_system_info().decode(errors="replace"),
        "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
    }


def probe_mlx(blas: str) -> dict[str, object]:
    """MLX's device, and its speed in float32 matrix products, in GFLOP/s.

    Args:
        blas: A library to load before MLX; empty for none.
    """
    if blas:
        ctypes.CDLL(blas, mode=ctypes.RTLD_GLOBAL)
    import mlx.core as mx  # deferred: this is what is probed, and the BLAS has to come first

    matrix = mx.random.normal((_ROWS, _ROWS))
    mx.eval(matrix)
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        mx.eval(matrix @ matrix)
        seconds.append(time.perf_counter() - started)
    return {"device": str(mx.default_device().type).rpartition(".")[2], "gflops": 2 * _ROWS**3 / min(seconds) / 1e9}


def main(argv: list[str]) -> int:
    """Probe the engine named by ``argv[0]``."""
    result = probe_llama() if argv[0] == "llama" else probe_mlx(argv[1] if len(argv) > 1 else "")
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
