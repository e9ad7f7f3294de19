"""The child process of :func:`quant.imatrix.collect.collect_imatrix` for MLX models.

python -P -m quant.imatrix.mlx_worker
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quant.child import Progress
from quant.child_side import answer
from quant.chunks import Text, cut_chunks, join_tokens
from quant.imatrix.accumulate import Accumulator
from quant.imatrix.file import write_imatrix
from quant.imatrix.mlx_names import gguf_names
from quant.mlx_eval import MLXEvaluator, mx

_MIN_ROWS = 16  # as llama-imatrix


class ModuleRecorder:
    """Sees the inputs of all linear layers: their classes' ``__call__`` is replaced for the rest of this process.

    A layer is known by its identity. Sums are made by MLX and taken into the accumulator after each chunk, so that a
    chunk's graph is computed once.

    Args:
        model: mlx-lm's model.
        names: GGUF's names by module path.
        accumulator: Where to.
    """

    def __init__(self, model: Any, names: Mapping[str, str], accumulator: Accumulator) -> None:
        from mlx import nn  # deferred with the rest of mlx
        from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

        self._accumulator = accumulator
        self._pending: list[tuple[str, Any, Any, int]] = []
        self._known = {id(module): names[path] for path, module in model.named_modules() if path in names}
        for kind in (nn.Linear, nn.QuantizedLinear):
            self._watch(kind, self._see_dense)
        for kind in (SwitchLinear, QuantizedSwitchLinear):
            self._watch(kind, self._see_routed)

    def _watch(self, kind: Any, see: Any) -> None:
        original = kind.__call__

        def call(module: Any, x: Any, *args: Any, **options: Any) -> Any:
            name = self._known.get(id(module))
            if name is not None:
                see(name, module, x, *args)
            return original(module, x, *args, **options)

        kind.__call__ = call

    def _see_dense(self, name: str, _module: Any, x: Any) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] >= _MIN_ROWS:
            sums = mx.square(rows.astype(mx.float32)).sum(axis=0, keepdims=True)
            self._pending.append((name, sums, None, rows.shape[0]))

    def _see_routed(self, name: str, module: Any, x: Any, indices: Any) -> None:
        # Rows and indices are in the same order, sorted by expert or not; gate and up share a token's row among the
        # experts that it is routed to, which broadcasting undoes.
        rows = mx.broadcast_to(x.squeeze(-2), (*indices.shape, x.shape[-1])).reshape(-1, x.shape[-1])
        experts = indices.reshape(-1)
        sums = mx.zeros((module.num_experts, x.shape[-1]), mx.float32)
        sums = sums.at[experts].add(mx.square(rows.astype(mx.float32)))
        counts = mx.zeros((module.num_experts,), mx.int32).at[experts].add(mx.ones_like(experts, mx.int32))
        self._pending.append((name, sums, counts, 0))

    def take(self) -> None:
        """Compute what the last chunk left and add it up."""
        mx.eval([item for _, sums, counts, _ in self._pending for item in (sums, counts) if item is not None])
        for name, sums, counts, n_rows in self._pending:
            self._accumulator.add(name, np.array(sums), np.array([n_rows]) if counts is None else np.array(counts))
        self._pending.clear()


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the model over the texts and write its importance matrix."""
    n_ctx = int(request["n_ctx"])
    evaluator = MLXEvaluator(Path(request["model"]), n_threads=request["n_threads"])
    names = gguf_names(evaluator.config, len(evaluator.model.layers))
    if not request["with_output"]:
        names = {module: name for module, name in names.items() if name.startswith("blk.")}
    accumulator = Accumulator()
    recorder = ModuleRecorder(evaluator.model, names, accumulator)
    tokens = join_tokens([Text(**text) for text in request["texts"]], evaluator.tokenize)
    chunks = cut_chunks(tokens, n_ctx, request["max_chunks"], evaluator.first_token)
    for index, chunk in enumerate(chunks):
        evaluator.run(chunk, first_logit=n_ctx - 1)
        recorder.take()
        progress("chunk", index + 1, len(chunks))
    matrix = accumulator.matrix(tuple(request["datasets"]), n_ctx)
    write_imatrix(Path(request["target"]), matrix)
    return {"n_chunks": len(chunks), "n_entries": len(matrix.entries)}


if __name__ == "__main__":
    answer(work)
