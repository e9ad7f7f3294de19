"""Measure a model in a child process: GGUF by llama.cpp, a directory by MLX, with the same numbers for both."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localllm.machine import read_machine
from quant.child import CheckCancelled, Progress, never_cancelled, no_progress, run_child
from quant.chunks import Text
from quant.measure.scores import Divergence, Perplexity
from quant.staging import staging

_WORKER = "quant.measure.worker"
_TOP_K = 1024


@dataclass(frozen=True)
class Quality:
    """How good a model is.

    Attributes:
        perplexity: On the text.
        divergence: From the source; None where there is no reference.
    """

    perplexity: Perplexity
    divergence: Divergence | None


@dataclass(frozen=True)
class Speed:
    """How fast a model is: medians, in tokens a second.

    Attributes:
        prefill: Reading a prompt.
        decode: Writing an answer, one token after the other.
    """

    prefill: float
    decode: float


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        n_ctx: Tokens in a chunk; the second half of each is scored.
        max_chunks: At most so many chunks; None takes the whole text.
        n_threads: CPU threads; None takes all fast cores.
    """

    n_ctx: int = 512
    max_chunks: int | None = None
    n_threads: int | None = None


def measure(
    model: Path,
    texts: Sequence[Text] = (),
    *,
    reference: Path | None = None,
    options: MeasureOptions = MeasureOptions(),
    progress: Progress = no_progress,
    check_cancelled: CheckCancelled = never_cancelled,
) -> Quality:
    """Perplexity as ``llama-perplexity`` computes it; with a reference, the divergence from it on its own tokens.

    Args:
        model: A GGUF file (the first of a split model) or a directory.
        texts: What is read; with a reference, the text that it was made on is.
        reference: A directory that :func:`make_reference` made from the model's source.
        options: How.
        progress: Called with ("chunk", done, total).
        check_cancelled: Called ten times a second; what it raises ends the work.

    Raises:
        InvalidModelError: The model or the reference is damaged.
        QuantizeError: The text is too short, or the models have other tokens.
    """
    answer = _ask(
        "measure", model, texts, options, progress, check_cancelled, reference=str(reference) if reference else None
    )
    found = answer["divergence"]
    return Quality(Perplexity(**answer["perplexity"]), Divergence(**found) if found else None)


def make_reference(
    model: Path,
    target: Path,
    texts: Sequence[Text],
    *,
    top_k: int = _TOP_K,
    options: MeasureOptions = MeasureOptions(),
    progress: Progress = no_progress,
    check_cancelled: CheckCancelled = never_cancelled,
) -> Perplexity:
    """Keep what ``model`` predicts for the text in the directory ``target``; return its perplexity.

    Args:
        model: The source that candidates are compared with.
        target: A directory; it appears as a whole, instead of what was there.
        texts: What is read.
        top_k: Tokens kept of each position; 8 bytes each.
        options: How.
        progress: As for :func:`measure`.
        check_cancelled: As for :func:`measure`.

    Raises:
        InvalidModelError: The model is damaged.
        QuantizeError: The text is too short.
        DiskFullError: There is no room.
    """
    with staging(target) as directory:
        made = directory / target.name
        made.mkdir()
        answer = _ask("reference", model, texts, options, progress, check_cancelled, target=str(made), k=top_k)
        if target.exists():
            target.replace(directory / "replaced")
        made.replace(target)
    return Perplexity(**answer["perplexity"])


def measure_speed(
    model: Path,
    *,
    n_prefill: int = 512,
    n_decode: int = 128,
    n_threads: int | None = None,
    check_cancelled: CheckCancelled = never_cancelled,
) -> Speed:
    """Tokens a second, as ``llama-bench`` measures them (pp512 and tg128).

    Raises:
        InvalidModelError: The model is damaged.
    """
    options = MeasureOptions(n_ctx=max(n_prefill, n_decode), n_threads=n_threads)
    answer = _ask("speed", model, (), options, no_progress, check_cancelled, n_prefill=n_prefill, n_decode=n_decode)
    return Speed(answer["prefill"], answer["decode"])


def _ask(
    task: str,
    model: Path,
    texts: Sequence[Text],
    options: MeasureOptions,
    progress: Progress,
    check_cancelled: CheckCancelled,
    **more: Any,
) -> dict[str, Any]:
    request = {
        "task": task,
        "model": str(model),
        "texts": [asdict(text) for text in texts],
        "n_ctx": options.n_ctx,
        "max_chunks": options.max_chunks,
        "n_threads": options.n_threads or read_machine().performance_cores,
        **more,
    }
    return run_child(
        _WORKER, request, what=f"measuring {model.name}", progress=progress, check_cancelled=check_cancelled
    )
