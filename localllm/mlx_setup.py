"""Getting a process ready for MLX: its BLAS, its bounds, and no network."""

import os
import platform
from types import ModuleType

from localllm.machine import preload_blas
from localllm.memory import machine_memory
from localllm.native.environment import blas_environment
from localllm.paths import Home

# Of the memory that a process may use, what MLX may keep of freed buffers for the next step. By itself it keeps as much
# as the machine has: servers were seen to grow from 24 to 75 GB.
_CACHE_SHARE = 8
# Operations that MLX hands to Metal at once; by itself 20 to 50. macOS ends a process whose one command keeps the
# screen waiting for seconds ("Impacting Interactivity"), in a way that Python cannot catch.
_METAL_OPERATIONS = 16


def prepare_process(n_threads: int, *, cpu: bool, budget: int = 0) -> None:
    """Get this process ready for MLX; must come before the first import of ``mlx``, mlx-lm and ``transformers``.

    The fastest BLAS of this machine is put under MLX on Linux, and nothing may ask the network for a file.

    Args:
        n_threads: Threads of the BLAS; 0 leaves the choice to it.
        cpu: Compute on the CPU even where there is a GPU.
        budget: Bytes of memory that this process may use; 0 for what models may use together on this machine.
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
    if platform.system() == "Darwin":
        os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", str(_METAL_OPERATIONS))  # read when the device is made
    import mlx.core as mx  # deferred: it binds its BLAS as it is imported

    if cpu:
        mx.set_default_device(mx.cpu)  # mlx-lm makes its stream as it is imported, on the device of that moment
    bound_memory(mx, budget or machine_memory().budget)


def bound_memory(mx: ModuleType, budget: int) -> None:
    """Keep MLX within ``budget`` bytes, and leave what is wired to macOS.

    ``mx.set_wired_limit`` is taken away, since mlx-lm calls it for every generation: programs that did so saw kernel
    panics under memory pressure, and without the call none in four hours. What is not wired may be swapped, so a model
    that barely fits may be slower; one that is too large is refused before it is loaded.
    """
    mx.set_memory_limit(budget)
    mx.set_cache_limit(budget // _CACHE_SHARE)
    mx.set_wired_limit = _leave_wired  # type: ignore[attr-defined]  # a function of the module


def _leave_wired(limit: int) -> int:  # noqa: ARG001  the signature of what it stands for
    """Stands for ``mx.set_wired_limit``: changes nothing, and says that nothing was wired before."""
    return 0
