"""The child process of :func:`quant.imatrix.collect.collect_from_gguf`.

python -P -m quant.imatrix.llama_worker
"""

from pathlib import Path
from typing import Any

from quant.child import Progress
from quant.child_side import answer
from quant.chunks import Text, cut_chunks, join_tokens
from quant.imatrix.accumulate import Accumulator
from quant.imatrix.file import write_imatrix
from quant.imatrix.ggml_nodes import NodeRecorder
from quant.llama_eval import LlamaEvaluator


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the model over the texts and write its importance matrix."""
    n_ctx = int(request["n_ctx"])
    accumulator = Accumulator()
    recorder = NodeRecorder(accumulator, with_output=request["with_output"])
    evaluator = LlamaEvaluator(
        Path(request["model"]), n_ctx=n_ctx, n_threads=request["n_threads"], on_node=recorder.callback
    )
    try:
        tokens = join_tokens([Text(**text) for text in request["texts"]], evaluator.tokenize)
        chunks = cut_chunks(tokens, n_ctx, request["max_chunks"], evaluator.first_token)
        for index, chunk in enumerate(chunks):
            try:
                evaluator.run(chunk)
            finally:
                if recorder.failure is not None:
                    raise recorder.failure
            progress("chunk", index + 1, len(chunks))
    finally:
        evaluator.close()
    matrix = accumulator.matrix(tuple(request["datasets"]), n_ctx)
    write_imatrix(Path(request["target"]), matrix)
    return {"n_chunks": len(chunks), "n_entries": len(matrix.entries)}


if __name__ == "__main__":
    answer(work)
