"""Compute an importance matrix, from a GGUF model by llama.cpp or from a directory by MLX, in a child process."""

from dataclasses import asdict, dataclass
from pathlib import Path

from localllm.files import sync_directory
from localllm.machine import read_machine
from quant.child import CheckCancelled, Progress, never_cancelled, no_progress, run_child
from quant.chunks import Text
from quant.staging import staging

_LLAMA_WORKER, _MLX_WORKER = "quant.imatrix.llama_worker", "quant.imatrix.mlx_worker"


@dataclass(frozen=True)
class Calibration:
    """What the model reads.

    Attributes:
        texts: The text, in order.
        names: What the file says it was made from: names, never folders.
        n_ctx: Tokens in a chunk.
        max_chunks: At most so many chunks; None takes all.
    """

    texts: tuple[Text, ...]
    names: tuple[str, ...]
    n_ctx: int = 512
    max_chunks: int | None = None


@dataclass(frozen=True)
class Collected:
    """What was made.

    Attributes:
        n_chunks: Chunks that were read.
        n_entries: Weights in the file.
    """

    n_chunks: int
    n_entries: int


def collect_imatrix(
    model: Path,
    target: Path,
    calibration: Calibration,
    *,
    with_output: bool = False,
    n_threads: int | None = None,
    progress: Progress = no_progress,
    check_cancelled: CheckCancelled = never_cancelled,
) -> Collected:
    """Run ``model`` over the calibration text and write its importance matrix to ``target``.

    Args:
        model: A GGUF file (the first of a split model), or a directory in MLX's form.
        target: A GGUF file in llama.cpp's form, as ``llama-imatrix`` makes it.
        calibration: The text.
        with_output: Also for the output matrix, where it is not the embeddings'.
        n_threads: CPU threads of llama.cpp; None takes all fast cores.
        progress: Called with ("chunk", done, total).
        check_cancelled: Called ten times a second; what it raises ends the work, and ``target`` is as it was.

    Raises:
        InvalidModelError: The model is damaged.
        QuantizeError: The text is too short, or the model cannot be measured.
        DiskFullError: There is no room for the file.
    """
    is_directory = model.is_dir()
    request = {
        "model": str(model),
        "texts": [asdict(text) for text in calibration.texts],
        "datasets": list(calibration.names),
        "n_ctx": calibration.n_ctx,
        "max_chunks": calibration.max_chunks,
        "with_output": with_output,
        "n_threads": n_threads or read_machine().performance_cores,
    }
    with staging(target) as directory:
        made = directory / target.name
        answer = run_child(
            _MLX_WORKER if is_directory else _LLAMA_WORKER,
            request | {"target": str(made)},
            what=f"measuring {model.name}",
            progress=progress,
            check_cancelled=check_cancelled,
        )
        made.replace(target)
    sync_directory(target.parent)
    return Collected(answer["n_chunks"], answer["n_entries"])
