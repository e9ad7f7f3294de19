"""Quantize a GGUF model with llama.cpp, in a child process: a bar by tensor, cancel, no half files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError, QuantizeError, UsageError
from localllm.files import disk_full_as_error, sync_directory, sync_file
from localllm.gguf_header import read_gguf_parts
from localllm.machine import read_machine
from localllm.models.transfer import require_room
from localllm.paths import FILE_MODE
from quant.child import CheckCancelled, Child, Progress, never_cancelled, no_progress
from quant.imatrix.file import ImportanceMatrix, read_imatrix
from quant.llama_choices import QuantizeChoices
from quant.llama_plan import WORKER, QuantizePlan, plan_types, refuse_lacking, refuse_other_model
from quant.staging import staging, synced_meanwhile


@dataclass(frozen=True)
class QuantizeResult:
    """What was made.

    Attributes:
        files: The model's files, the first part first.
        n_bytes: Their size together.
        plan: What became of each tensor; its warnings are for the person.
    """

    files: tuple[Path, ...]
    n_bytes: int
    plan: QuantizePlan


def quantize_gguf(
    source: Path,
    target: Path,
    file_type: str,
    *,
    imatrix: Path | None = None,
    overrides: Sequence[str] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    keep_split: bool = False,
    n_threads: int | None = None,
    progress: Progress = no_progress,
    check_cancelled: CheckCancelled = never_cancelled,
) -> QuantizeResult:
    """Quantize ``source`` into ``target``; the tensors are, byte for byte, those of ``llama-quantize``.

    A source that is quantized already is taken too; the plan's warnings say what that costs.

    Args:
        source: A GGUF model; the first file of a split one.
        target: The result. With ``keep_split``, ``NAME.gguf`` stands for ``NAME-00001-of-00003.gguf`` and so on.
        file_type: What a person asks for: ``q4_k_m``.
        imatrix: An importance matrix. The result names its file and the text that it was made from, without folders.
        overrides: ``REGEX=TYPE`` rules for single tensors; the first that is found in a name counts.
        output_type: Tensor type of the output matrix.
        embedding_type: Tensor type of the token embeddings.
        pure: All in the base type, without the recipe's mix.
        keep_split: As many files as the source has.
        n_threads: CPU threads; None takes all fast cores.
        progress: Called with (tensor, done, total).
        check_cancelled: Called ten times a second; what it raises ends the work, and nothing is left of it.

    Raises:
        UsageError: A type or rule is none, or source and target are the same.
        InvalidModelError: The source or the importance matrix is damaged.
        QuantizeError: It cannot be done so: an importance matrix is needed, or llama.cpp refuses.
        DiskFullError: There is no room.
    """
    choices = QuantizeChoices.parse(file_type, overrides, output_type, embedding_type, pure=pure, keep_split=keep_split)
    if target.exists() and target.samefile(source):
        raise UsageError("A model cannot be quantized into its own file.", "Give another target.")
    with Child(WORKER, f"quantizing {source.name}") as child, staging(target) as directory:
        matrix = read_imatrix(imatrix) if imatrix else None  # meanwhile the child starts
        plan = plan_types(source, choices, matrix, child=child, check_cancelled=check_cancelled)
        refuse_lacking(plan, has_imatrix=matrix is not None)
        if matrix is not None:
            refuse_other_model(plan, matrix)
        require_room(target.parent, plan.n_bytes)
        output = directory / "made"
        output.mkdir()
        request = {
            "source": str(source),
            "target": str(output / (target.stem if keep_split else target.name)),
            "options": choices.native(n_threads=n_threads or read_machine().performance_cores),
            "imatrix": _native(matrix, imatrix.name, directory / "weights") if matrix and imatrix else None,
        }
        with disk_full_as_error(target), synced_meanwhile(output):
            child.ask(request, progress=progress, check_cancelled=check_cancelled)
        made = sorted(output.iterdir())
        _check_result(made, plan)
        files = tuple(_publish(path, target.parent) for path in made)
    sync_directory(target.parent)
    return QuantizeResult(files, sum(path.stat().st_size for path in files), plan)


def _native(matrix: ImportanceMatrix, label: str, path: Path) -> dict[str, Any]:
    """Write the weights to ``path``; return :class:`quant.llama_native.NativeImatrix` in JSON."""
    sizes = {}
    with disk_full_as_error(path), path.open("wb") as file:
        for name, entry in matrix.entries.items():
            weights = entry.weights()
            sizes[name] = weights.size
            file.write(weights.data)
    dataset = matrix.datasets[0] if matrix.datasets else ""
    return {"path": str(path), "sizes": sizes, "label": label, "dataset": dataset, "n_chunks": matrix.chunk_count}


def _check_result(files: Sequence[Path], plan: QuantizePlan) -> None:
    """llama.cpp may miss that a write failed (its streams do not always throw): look at what it wrote."""
    try:
        header = read_gguf_parts(files)
    except InvalidModelError as error:
        raise QuantizeError(
            f"What llama.cpp wrote is damaged: {error.message}", "The disk may be full or failing; nothing was kept."
        ) from error
    made = {tensor.name: tensor.type_name for tensor in header.tensors}
    wrong = [tensor.name for tensor in plan.tensors if made.get(tensor.name) != tensor.to_type]
    if wrong:
        raise QuantizeError(f"llama.cpp did not do what it had planned: {wrong[0]} is {made.get(wrong[0])}.")


def _publish(path: Path, directory: Path) -> Path:
    """Make a written file durable and give it its name."""
    with disk_full_as_error(path):
        sync_file(path)
    path.chmod(FILE_MODE)
    return path.replace(directory / path.name)
