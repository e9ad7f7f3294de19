"""Getting a process ready for MLX."""

import os

from localllm.machine import preload_blas
from localllm.native.environment import blas_environment
from localllm.paths import Home


def prepare_process(n_threads: int, *, cpu: bool) -> None:
    """Get this process ready for MLX; must come before the first import of ``mlx``, mlx-lm and ``transformers``.

    The fastest BLAS of this machine is put under MLX on Linux, and nothing may ask the network for a file.

    Args:
        n_threads: Threads of the BLAS; 0 leaves the choice to it.
        cpu: Compute on the CPU even where there is a GPU.
    """
    if n_threads:
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(name, str(n_threads))
    # Whatever the person's environment says: this process reads what is on the disk, nothing else.
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"})
    os.environ.pop("MLXLM_USE_MODELSCOPE", None)
    os.environ.update(blas_environment(Home.resolve()))
    preload_blas()
    import mlx.core as mx  # deferred: it binds its BLAS as it is imported

    if cpu:
        mx.set_default_device(mx.cpu)  # mlx-lm makes its stream as it is imported, on the device of that moment
