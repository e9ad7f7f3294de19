"""The child process of :mod:`finetune.gate`: what one form of a model predicts, kept or compared.

python -P -m finetune.gate_worker
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError, QuantizeError
from localllm.mlx_setup import prepare_process
from quant.child import Progress
from quant.child_side import answer
from quant.evaluator import Evaluator
from quant.measure.scores import Array, Divergence, Summary, divergence, summarise

_TOP_K = 1024


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Keep what the model predicts under ``target``, or compare it with what is kept there."""
    with np.load(request["rows"]) as stored:
        rows = np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])
        first = stored["first"].tolist()
    evaluator = _open(request, max(len(row) for row in rows))
    target = Path(request["target"])
    try:
        if request["compare"]:
            return _compare(evaluator, rows, first, target, progress)
        return _keep(evaluator, rows, first, target, progress)
    finally:
        evaluator.close()


def _open(request: dict[str, Any], n_ctx: int) -> Evaluator:
    model, adapter = Path(request["model"]), request["adapter"] and Path(request["adapter"])
    if model.is_file():
        from quant.llama_eval import LlamaEvaluator  # deferred: llama_cpp takes 0.4 s to import

        layers = 0 if request["cpu"] else -1
        threads = request["n_threads"]
        return LlamaEvaluator(
            model, n_ctx=n_ctx, n_threads=threads, n_gpu_layers=layers, adapter=adapter, exact_cache=True
        )
    prepare_process(request["n_threads"], cpu=request["cpu"])
    from quant.mlx_eval import MLXEvaluator, mx  # deferred: after the BLAS that mlx binds; mlx-lm takes 2 s

    evaluator = MLXEvaluator(model, n_threads=request["n_threads"])
    if adapter:
        from mlx_lm.tuner.utils import load_adapters

        try:
            load_adapters(evaluator.model, str(adapter))
        except (ValueError, KeyError, OSError) as error:
            raise InvalidModelError("The adapter does not fit this model.") from error
    if request["widen"]:
        from mlx_lm.utils import dequantize_model

        evaluator.model = dequantize_model(evaluator.model)
        evaluator.model.set_dtype(mx.float32)
    evaluator.model.eval()  # an adapter comes in training mode, in which dropout is on
    return evaluator


def _logits(evaluator: Evaluator, row: Array, first: int) -> Array:
    """What is predicted after each token from ``first`` on, but for the last, whose next nobody knows."""
    return evaluator.run(row.tolist(), first_logit=first)[:-1]


def _keep(
    evaluator: Evaluator, rows: list[Array], first: list[int], target: Path, progress: Progress
) -> dict[str, Any]:
    kept = []
    k = min(_TOP_K, evaluator.n_vocab)
    for number, (row, start) in enumerate(zip(rows, first, strict=True), 1):
        kept.append(summarise(_logits(evaluator, row, start), k))
        progress("row", number, len(rows))
    np.savez(
        target,
        ids=np.concatenate([summary.ids for summary in kept]),
        log_probs=np.concatenate([summary.log_probs for summary in kept]),
        rest=np.concatenate([summary.rest for summary in kept]),
        n_vocab=evaluator.n_vocab,
    )
    return {}


def _compare(
    evaluator: Evaluator, rows: list[Array], first: list[int], target: Path, progress: Progress
) -> dict[str, Any]:
    with np.load(target) as stored:
        ids, log_probs, rest = stored["ids"], stored["log_probs"], stored["rest"]
        n_vocab = int(stored["n_vocab"])
    if evaluator.n_vocab < n_vocab:
        raise QuantizeError(f"The exported model has {evaluator.n_vocab} tokens, and the trained one {n_vocab}.")
    divergences, agreements = [], []
    difference: dict[str, int] | None = None
    done = 0
    for number, (row, start) in enumerate(zip(rows, first, strict=True)):
        # Some forms pad the vocabulary: what the reference does not have takes no part.
        logits = _logits(evaluator, row, start)[:, :n_vocab]
        part = slice(done, done + len(logits))
        kl, agrees = divergence(Summary(ids[part], log_probs[part], rest[part]), logits)
        if difference is None and not agrees.all():
            place = int(np.argmin(agrees))
            difference = {
                "row": number,
                "position": start + place,
                "expected": int(ids[done + place, 0]),
                "found": int(logits[place].argmax()),
            }
        divergences.append(kl)
        agreements.append(agrees)
        done += len(logits)
        progress("row", number + 1, len(rows))
    found = Divergence.of(np.concatenate(divergences), np.concatenate(agreements))
    return {"divergence": asdict(found), "difference": difference}


if __name__ == "__main__":
    answer(work)
