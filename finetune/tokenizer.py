"""The tokenizer of a model in the store."""

import tempfile
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore


def load_tokenizer(store: ModelStore, manifest: Manifest) -> Any:
    """The transformers tokenizer of a model; nothing is fetched, nothing of the model's is run.

    That of a GGUF file is written out first, into a directory that is gone afterwards.

    Raises:
        InvalidModelError: It cannot be loaded.
    """
    if manifest.format != "gguf":
        return _load(store.file(manifest).parent, manifest)
    from quant.tensors.gguf_reader import GGUFSource  # deferred: numpy and gguf, 0.3 s
    from quant.tokenizers.to_hf import write_hf_tokenizer

    with tempfile.TemporaryDirectory(prefix="localllm-") as name, GGUFSource(store.file(manifest)) as source:
        work = Path(name)
        write_hf_tokenizer(source.metadata, work, str(source.metadata.get("general.architecture", "")))
        return _load(work, manifest)


def _load(directory: Path, manifest: Manifest) -> Any:
    from transformers import AutoTokenizer  # deferred: 2 s

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(
            f"The tokenizer of {manifest.model_name} cannot be loaded: {str(error).splitlines()[0]}",
            "Pull the model again.",
        ) from error
