"""Does llama.cpp compute rightly in this way? ``python -P -m localllm.native.llama_probe WAY``, a process of its own.

It runs :class:`.probe_model.ProbeModel` one token at a time, then in one batch (some kernels are for batches only),
and prints one JSON object: how far the logits are from NumPy's. Where the library does not suit the processor, it ends
by a signal.
"""

import ctypes
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from localllm.native.llama_params import model_params, way_named
from localllm.native.probe_model import N_TOKENS, Array, ProbeModel, deviation


def probe(way_name: str) -> dict[str, Any]:
    """Run the model; what is printed.

    Raises:
        RuntimeError: llama.cpp refuses to load or to compute it.
    """
    import llama_cpp as lib  # deferred: 0.2 s, and it is what may crash

    system = lib.llama_print_system_info().decode(errors="replace")
    facts: dict[str, Any] = {
        "features": re.findall(r"(\w+) = 1", system),
        "gpu": bool(lib.llama_supports_gpu_offload()),
    }
    _tell(facts)  # known even when what follows crashes
    model = ProbeModel()
    reference = model.logits()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "probe.gguf"
        model.write(path)
        began = time.perf_counter()
        runner = _Runner(lib, path, way_name)
        single = np.stack([runner.run(model.tokens[i : i + 1], i)[0] for i in range(N_TOKENS)])
        runner.forget()
        batch = runner.run(model.tokens, 0)
    facts["seconds"] = time.perf_counter() - began
    return facts | {"single": deviation(single, reference), "batch": deviation(batch, reference)}


class _Runner:
    """Model and context; the process's end frees them."""

    def __init__(self, lib: Any, path: Path, way_name: str) -> None:
        self._lib = lib
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(os.fsencode(path), model_params(lib, way=way_named(way_name)))
        if not model:
            raise RuntimeError("llama.cpp does not load the probe's model")
        self._n_vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        params = lib.llama_context_default_params()
        params.n_ctx = 4 * N_TOKENS
        params.n_batch = params.n_ubatch = N_TOKENS
        params.n_threads = params.n_threads_batch = min(2, os.cpu_count() or 1)
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context for the probe's model")
        self._batch = lib.llama_batch_init(N_TOKENS, 0, 1)

    def run(self, tokens: Array, position: int) -> Array:
        """Logits of ``tokens``, which stand at ``position``; float32 of shape (tokens, vocabulary)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens.tolist()):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama.cpp does not compute the probe's model (code {code})")
        logits = ctypes.cast(self._lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(logits, shape=(len(tokens), self._n_vocab)).copy()

    def forget(self) -> None:
        """Empty the cache."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)


def main(argv: list[str]) -> int:
    """Probe the way named by ``argv[0]``; print what was found as the last line."""
    _tell(probe(argv[0]))
    return 0


def _tell(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
