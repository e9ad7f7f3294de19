"""What ggml's matrix products see: a callback for llama.cpp's scheduler.

Imported in a child process only: importing ``llama_cpp`` costs about 0.4 s and 60 MB.
"""

import ctypes
from typing import Any

import llama_cpp as lib
import numpy as np
from llama_cpp._ggml import libggml
from numpy.lib.stride_tricks import as_strided

from localllm.errors import QuantizeError
from quant.imatrix.accumulate import Accumulator

# ggml.h of the llama.cpp in llama-cpp-python 0.3.36: enum ggml_op and enum ggml_type; checked by name below.
_MUL_MAT, _MUL_MAT_ID = 29, 30
_OP_NAMES = {_MUL_MAT: b"MUL_MAT", _MUL_MAT_ID: b"MUL_MAT_ID"}
_F32 = 0
_MIN_ROWS = 16  # llama-imatrix skips smaller products: they come from decoding, or are no projection of tokens

Array = np.ndarray[Any, np.dtype[Any]]


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor``."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class NodeRecorder:
    """Adds the inputs of every matrix product to an accumulator.

    Args:
        accumulator: Where to.
        with_output: Record ``output.weight`` too.

    Attributes:
        callback: For llama.cpp; must live as long as the context.
        failure: What went wrong inside the callback; raise it after each ``decode``.

    Raises:
        QuantizeError: This llama.cpp numbers its operations in another way.
    """

    def __init__(self, accumulator: Accumulator, *, with_output: bool = False) -> None:
        _check_library()
        self.failure: BaseException | None = None
        self.callback = lib.ggml_backend_sched_eval_callback(self._node)
        self._accumulator = accumulator
        self._with_output = with_output

    def _node(self, address: int, ask: bool, _data: Any) -> bool:
        node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        try:
            if ask:
                return self._wanted(node)
            self._record(node)
        except Exception as error:  # noqa: BLE001  ctypes would print and forget it: raised after decode
            self.failure = error
            return False  # stops the computation
        return True

    def _wanted(self, node: _Tensor) -> bool:
        if node.op == _MUL_MAT_ID:
            return True
        if node.op != _MUL_MAT:
            return False
        inputs = node.src[1].contents
        if inputs.ne[1] < _MIN_ROWS or inputs.type != _F32:
            return False
        name = _weight_name(node)
        return name.startswith("blk.") or (self._with_output and name == "output.weight")

    def _record(self, node: _Tensor) -> None:
        weight, inputs = node.src[0].contents, node.src[1].contents
        name = _weight_name(node)
        rows = _read(inputs, np.float32)  # (ne3, ne2, ne1, ne0)
        if node.op == _MUL_MAT_ID:
            ids = _read(node.src[2].contents, np.int32)[0, 0]  # (n_tokens, n_used)
            n_used = ids.shape[1]
            # Gate and up see the token, down sees what each expert made: one row or n_used rows a token.
            tokens = rows[0][:, np.arange(n_used) % rows.shape[2]]
            squares = np.square(tokens, dtype=np.float64).reshape(ids.size, -1)
            self._accumulator.add_routed(name, squares, ids.reshape(-1), int(weight.ne[2]))
            return
        sums = np.square(rows, dtype=np.float64).sum(axis=2)  # (ne3, ne2, ne0)
        n_matrices = int(weight.ne[2] * weight.ne[3])
        slots = (np.arange(rows.shape[0])[:, None] % weight.ne[3]) * weight.ne[2] + (
            np.arange(rows.shape[1])[None, :] % weight.ne[2]
        )
        by_matrix = np.zeros((n_matrices, rows.shape[3]))
        np.add.at(by_matrix, slots.reshape(-1), sums.reshape(-1, rows.shape[3]))
        n_rows = rows.shape[0] * rows.shape[1] * rows.shape[2] // n_matrices
        self._accumulator.add(name, by_matrix.reshape(1, -1), np.array([n_rows]))


def _weight_name(node: _Tensor) -> str:
    """``blk.0.attn_q.weight``: a copy on a device is called ``CUDA0#blk.0.attn_q.weight#0``."""
    name: str = node.src[0].contents.name.decode("utf-8", errors="replace")
    return name.split("#")[1] if "#" in name else name


def _read(tensor: _Tensor, dtype: Any) -> Array:
    """A tensor of 4-byte items, wherever it lies, as an array of shape (ne3, ne2, ne1, ne0)."""
    shape, strides = tuple(tensor.ne[::-1]), tuple(tensor.nb[::-1])
    n_bytes = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 4
    raw = np.empty(n_bytes, np.uint8)
    libggml.ggml_backend_tensor_get(ctypes.byref(tensor), ctypes.c_void_p(raw.ctypes.data), 0, ctypes.c_size_t(n_bytes))
    return as_strided(np.frombuffer(raw.data, dtype, count=n_bytes // 4), shape, strides)


def _check_library() -> None:
    libggml.ggml_op_name.restype = ctypes.c_char_p
    libggml.ggml_tensor_overhead.restype = ctypes.c_size_t
    object_bytes = 32  # sizeof(struct ggml_object), which the overhead includes
    numbered = all(libggml.ggml_op_name(number) == name for number, name in _OP_NAMES.items())
    if not numbered or libggml.ggml_tensor_overhead() != ctypes.sizeof(_Tensor) + object_bytes:
        raise QuantizeError(
            "The installed llama.cpp has another layout of tensors than this version of localllm knows.",
            "Compute the importance matrix from an MLX model, or install llama-cpp-python as in constraints.txt.",
        )
