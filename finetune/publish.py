"""Puts a trained adapter into the store, in the form that llama.cpp loads too where that is possible."""

import shutil
from collections.abc import Callable
from pathlib import Path

from finetune.recipe import Recipe
from localllm.adapters import AdapterManifest, AdapterStore
from localllm.errors import LocalLLMError
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore
from localllm.paths import DIR_MODE
from quant.lora import convert_adapter

_BESIDE = ("recipe.yaml", "report.json", "loss.svg", "history.jsonl")


def publish(
    store: ModelStore, base: Manifest, recipe: Recipe, trained: Path, out: Path, say: Callable[[str], None]
) -> AdapterManifest:
    """Install ``trained`` under the recipe's name.

    Args:
        store: Of models; the adapters are beside it.
        base: The model that was trained, in MLX's form.
        recipe: Names the adapter.
        trained: Directory of the best weights.
        out: Holds the recipe, the report, the curve.
        say: Told what a person should know.
    """
    directory = out / "adapter"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=DIR_MODE)
    for name in ("adapter_config.json", "adapters.safetensors"):
        shutil.copy(trained / name, directory / name)
    if recipe.method == "lora":
        try:
            convert_adapter(trained, directory / "adapter.gguf", to="gguf", base=store.file(base).parent)
        except LocalLLMError as error:
            say(f"The adapter has no form for llama.cpp: {error.message} It runs on MLX.")
    extras = tuple(out / name for name in _BESIDE if (out / name).is_file())
    adapter, _ = AdapterStore(store.home).install(directory, name=recipe.name or "", base=base.name, beside=extras)
    return adapter
