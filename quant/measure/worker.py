"""The child process of :mod:`quant.measure.run`.

python -P -m quant.measure.worker
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import QuantizeError
from quant.child import Progress
from quant.child_side import answer
from quant.chunks import Text, cut_chunks, join_tokens
from quant.evaluator import Evaluator, open_evaluator
from quant.measure.reference import Reference, ReferenceInfo, new_reference
from quant.measure.scores import Divergence, Perplexity, divergence, negative_log_likelihoods, summarise

_PREFILL_RUNS, _DECODE_RUNS = 5, 3
_SHORT = 16  # tokens of a prompt that says how fast a model is
_PATIENCE = 30.0  # seconds that a whole prompt may take, and all runs of a kind
_ENOUGH = 10.0  # seconds of decoding at once

Array = np.ndarray[Any, np.dtype[Any]]


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Do one of the three things."""
    n_ctx = int(request["n_ctx"])
    path, task = Path(request["model"]), request["task"]
    evaluator = open_evaluator(path, n_ctx=n_ctx, n_threads=request["n_threads"], as_served=task == "speed")
    try:
        match task:
            case "speed":
                return _speed(evaluator, n_ctx, request["n_prefill"], request["n_decode"])
            case "reference":
                return _make_reference(evaluator, request, progress)
            case _:
                return _measure(evaluator, request, progress)
    finally:
        evaluator.close()


def _chunks(evaluator: Evaluator, request: dict[str, Any]) -> list[list[int]]:
    tokens = join_tokens([Text(**text) for text in request["texts"]], evaluator.tokenize)
    return cut_chunks(tokens, request["n_ctx"], request["max_chunks"], evaluator.first_token)


def _score(evaluator: Evaluator, chunk: list[int]) -> tuple[Array, Array]:
    """Logits and losses of the second half of a chunk: there every token has at least half a chunk before it.

    Raises:
        QuantizeError: They are no numbers.
    """
    first = len(chunk) // 2
    # The last token's logits predict what is not in the chunk.
    logits = evaluator.run(chunk, first_logit=first)[:-1]
    nll = negative_log_likelihoods(logits, np.array(chunk[first + 1 :]))
    if not np.isfinite(nll).all():
        raise QuantizeError(
            "The model's predictions are no numbers: it computes nonsense on this text.", "It may be damaged."
        )
    return logits, nll


def _make_reference(evaluator: Evaluator, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    chunks, n_ctx = _chunks(evaluator, request), request["n_ctx"]
    k = min(request["k"], evaluator.n_vocab)
    info = ReferenceInfo(len(chunks), n_ctx, n_ctx - n_ctx // 2 - 1, evaluator.n_vocab, k)
    losses = []
    with new_reference(Path(request["target"]), info, chunks) as reference:
        for index, chunk in enumerate(chunks):
            logits, nll = _score(evaluator, chunk)
            losses.append(nll)
            reference.put(index, summarise(logits, k))
            progress("chunk", index + 1, len(chunks))
    return {"perplexity": asdict(Perplexity.of(np.concatenate(losses)))}


def _measure(evaluator: Evaluator, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    reference = Reference.open(Path(request["reference"])) if request["reference"] else None
    if reference is None:
        chunks = _chunks(evaluator, request)
    else:
        if evaluator.n_vocab < reference.info.n_vocab:
            raise QuantizeError(
                f"The model has {evaluator.n_vocab} tokens and its source {reference.info.n_vocab}.",
                "Only models with the same tokens can be compared.",
            )
        chunks = reference.tokens.tolist()
    losses, kl, agrees = [], [], []
    for index, chunk in enumerate(chunks):
        logits, nll = _score(evaluator, chunk)
        losses.append(nll)
        if reference is not None:
            # Some formats pad the vocabulary: what the source does not have takes no part.
            token_kl, token_agrees = divergence(reference.get(index), logits[:, : reference.info.n_vocab])
            kl.append(token_kl)
            agrees.append(token_agrees)
        progress("chunk", index + 1, len(chunks))
    found = Divergence.of(np.concatenate(kl), np.concatenate(agrees)) if reference is not None else None
    return {
        "perplexity": asdict(Perplexity.of(np.concatenate(losses))),
        "divergence": asdict(found) if found else None,
    }


def _speed(evaluator: Evaluator, n_ctx: int, n_prefill: int, n_decode: int) -> dict[str, Any]:
    """Median tokens a second, as llama-bench measures them: a prompt in one batch; token by token from nothing.

    What is so slow that this would take minutes (MLX's packed weights on a CPU) reads and writes fewer tokens.
    """
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, evaluator.n_vocab, min(n_prefill, n_ctx)).tolist()

    def seconds(n_tokens: int) -> float:
        start = time.perf_counter()
        evaluator.run(prompt[:n_tokens], first_logit=n_tokens - 1)
        return time.perf_counter() - start

    seconds(1)  # warm: pages, caches, kernels; a model that comes from the disk is not slow for that
    n_decode = max(1, min(n_decode, int(_ENOUGH / seconds(1))))
    short = min(_SHORT, len(prompt), n_decode)
    n_prompt = len(prompt) if seconds(short) * len(prompt) / short < _PATIENCE else short
    seconds(n_prompt)
    prefill = [n_prompt / seconds(n_prompt) for _ in _repeated(_PREFILL_RUNS)]
    decode = []
    for _ in _repeated(_DECODE_RUNS):
        start = time.perf_counter()
        for position in range(n_decode):
            evaluator.run([prompt[position % len(prompt)]], position=position)
        decode.append(n_decode / (time.perf_counter() - start))
    return {"prefill": statistics.median(prefill), "decode": statistics.median(decode)}


def _repeated(n_times: int) -> Iterator[None]:
    """So often, or until it has taken long enough; once at least."""
    began = time.perf_counter()
    for number in range(n_times):
        if number and time.perf_counter() - began > _PATIENCE:
            return
        yield


if __name__ == "__main__":
    answer(work)
