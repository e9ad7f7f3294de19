"""What was found of the native libraries, as variables for processes that use them.

``LOCALLLM_LLAMA_WAY``, ``LOCALLLM_BLAS`` and ``LOCALLLM_BLAS_KERNEL``: one that is set already (by the person, or by
whoever started this process) is obeyed, and nothing is probed for it.
"""

import os

from localllm.machine import BLAS_KERNEL_VARIABLE, BLAS_VARIABLE, OPENBLAS_VARIABLE
from localllm.native.blas import needs_blas, prove_blas
from localllm.native.llama_params import WAY_VARIABLE
from localllm.native.llama_verdict import prove_llama
from localllm.paths import Home


def llama_environment(home: Home) -> dict[str, str]:
    """The way of loading llama.cpp; nothing where it is set, or where none works (who tries will see)."""
    if WAY_VARIABLE in os.environ:
        return {}
    way = prove_llama(home).way
    return {} if way is None else {WAY_VARIABLE: way.name}


def blas_environment(home: Home) -> dict[str, str]:
    """The BLAS for MLX, and its kernel where the library's own choice is not the best."""
    if not needs_blas() or BLAS_VARIABLE in os.environ:
        return {}
    best = prove_blas(home).best
    if best is None:
        return {BLAS_VARIABLE: ""}
    kernel = {BLAS_KERNEL_VARIABLE: best.told} if best.told and OPENBLAS_VARIABLE not in os.environ else {}
    return {BLAS_VARIABLE: best.library, **kernel}


def native_environment(home: Home) -> dict[str, str]:
    """Both."""
    return llama_environment(home) | blas_environment(home)
