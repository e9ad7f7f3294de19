"""The tokenizer of a model in the store."""

from typing import Any

from localllm.errors import InvalidModelError, UsageError
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore


def load_tokenizer(store: ModelStore, manifest: Manifest) -> Any:
    """The transformers tokenizer of a directory of safetensors; nothing is fetched, nothing of the model's is run.

    Raises:
        UsageError: It is a GGUF file.
        InvalidModelError: It cannot be loaded.
    """
    if manifest.format == "gguf":
        raise UsageError(f"{manifest.model_name} is a GGUF file.", "Export it to MLX's form first.")
    from transformers import AutoTokenizer  # deferred: 2 s

    try:
        return AutoTokenizer.from_pretrained(
            store.file(manifest).parent, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(
            f"The tokenizer of {manifest.model_name} cannot be loaded: {str(error).splitlines()[0]}",
            "Pull the model again.",
        ) from error
