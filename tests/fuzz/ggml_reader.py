"""ggml's own reader of GGUF headers, for which the validator stands guard."""

import ctypes
import importlib.util
from pathlib import Path


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class GGMLReader:
    """Reads headers in this very process, so that a header that ends ggml's process ends this one."""

    def __init__(self) -> None:
        folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
        self._ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
        self._ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
        self._ggml.gguf_init_from_file.restype = ctypes.c_void_p
        self._ggml.gguf_free.argtypes = [ctypes.c_void_p]
        self._ggml.gguf_get_n_tensors.argtypes = [ctypes.c_void_p]
        self._ggml.gguf_get_n_tensors.restype = ctypes.c_int64
        self._silent = _LogCallback(lambda level, text, data: None)
        self._ggml.ggml_log_set(self._silent, None)

    def n_tensors(self, path: Path) -> int | None:
        """The number of tensors; None when ggml refuses the file."""
        context = self._ggml.gguf_init_from_file(str(path).encode(), _InitParams(no_alloc=True, ctx=None))
        if context is None:
            return None
        try:
            return int(self._ggml.gguf_get_n_tensors(context))
        finally:
            self._ggml.gguf_free(context)
