"""How llama.cpp loads models on this machine: every loader takes its parameters from here."""

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from localllm.errors import SettingsError

WAY_VARIABLE = "LOCALLLM_LLAMA_WAY"
_NO_DEVICES = (ctypes.c_void_p * 1)()  # a list that ends at once; it must live as long as the parameters


@dataclass(frozen=True)
class Way:
    """A way of loading that needs no other build of the library.

    Attributes:
        name: What the verdict and the environment call it.
        packed: Weights may be brought into the processor's favourite order ("extra buffers": repacking, AMX).
        gpu: A GPU may be used.
        words: Completes "llama.cpp …".
    """

    name: str
    packed: bool
    gpu: bool
    words: str


# The fastest first.
WAYS = (
    Way("full", packed=True, gpu=True, words="works as it was built"),
    Way("unpacked", packed=False, gpu=True, words="works without packed weights"),
    Way("cpu", packed=True, gpu=False, words="works on the processor alone"),
    Way("cpu-unpacked", packed=False, gpu=False, words="works on the processor alone, without packed weights"),
)


def way_named(name: str) -> Way:
    """The way of that name.

    Raises:
        SettingsError: There is none.
    """
    for way in WAYS:
        if way.name == name:
            return way
    names = ", ".join(way.name for way in WAYS)
    raise SettingsError(f"{WAY_VARIABLE} is {name!r}, which is no way of loading.", f"There are: {names}.")


def current_way() -> Way:
    """What whoever started this process chose for it; the fullest way where nobody did."""
    return way_named(os.environ.get(WAY_VARIABLE) or WAYS[0].name)


def model_params(lib: Any, n_gpu_layers: int = -1, way: Way | None = None) -> Any:
    """``llama_model_params`` for this machine.

    Args:
        lib: ``llama_cpp``, or its bindings alone.
        n_gpu_layers: Layers on the GPU, where one may be used; -1 is all.
        way: How to load; None for :func:`current_way`.
    """
    way = way or current_way()
    params = lib.llama_model_default_params()
    params.use_extra_bufts = way.packed
    params.n_gpu_layers = n_gpu_layers if way.gpu else 0
    if not way.gpu:
        # Without a list large batches would still go to the GPU.
        params.devices = ctypes.addressof(_NO_DEVICES)
    return params
