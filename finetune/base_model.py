"""The model to be trained in MLX's form: a GGUF file is converted once, and kept in the store beside it."""

from localllm.jobs.context import JobContext
from localllm.jobs.events import Message
from localllm.jobs.record import JobSpec
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore
from quant.jobs import export_into, export_spec

# Small models are kept in full precision; of others, bf16 loses less than their quantization has.
_EXACT_BELOW = 1_000_000_000


def find_in_mlx_form(store: ModelStore, manifest: Manifest) -> Manifest | None:
    """``manifest`` itself, or the directory that it was unpacked into before; None where it has not been."""
    return manifest if manifest.format != "gguf" else _unpacking(store, manifest)[1]


def in_mlx_form(store: ModelStore, manifest: Manifest, context: JobContext) -> Manifest:
    """``manifest`` itself, or what it becomes as a directory of safetensors.

    Raises:
        InvalidModelError: The file cannot be converted.
        DiskFullError: There is no room.
    """
    if manifest.format != "gguf":
        return manifest
    spec, found = _unpacking(store, manifest)
    if found is not None:
        return found
    context.emit(Message("info", f"{manifest.model_name} is a GGUF file: it is unpacked once for training."))
    return export_into(store, spec.arguments, context)


def _unpacking(store: ModelStore, manifest: Manifest) -> tuple[JobSpec, Manifest | None]:
    form = "mlx:f32" if 0 < manifest.parameters < _EXACT_BELOW else "mlx:bf16"
    return export_spec(store, str(manifest.model_name), form)
