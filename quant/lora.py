"""LoRA adapters from any of three forms into any other: MLX, PEFT, and the GGUF file that llama.cpp loads."""

import tempfile
from pathlib import Path
from typing import Literal

from localllm.adapters import AdapterManifest, AdapterStore, Form
from localllm.errors import InvalidModelError, UsageError
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore
from quant.adapters import mlx, peft
from quant.adapters.gguf import read_gguf, write_gguf_adapter
from quant.adapters.lora import Lora
from quant.adapters.names import Modules
from quant.directories import new_directory

AdapterForm = Literal["mlx", "peft", "gguf"]
FORMS: tuple[AdapterForm, ...] = ("mlx", "peft", "gguf")


def form_of(path: Path) -> AdapterForm:
    """The form that an adapter is in.

    Raises:
        InvalidModelError: It is none of them.
    """
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    if (path / mlx.WEIGHTS).is_file():
        return "mlx"
    if (path / peft.WEIGHTS).is_file():
        return "peft"
    raise InvalidModelError(
        f"{path.name} holds no adapter.",
        f"Give a .gguf file, or a directory with {mlx.CONFIG} and {mlx.WEIGHTS} (MLX) or {peft.WEIGHTS} (PEFT).",
    )


def convert_adapter(source: Path, target: Path, *, to: AdapterForm, base: Path) -> None:
    """Write an adapter in another form; nothing in it is rounded to less than float32.

    DoRA, and adapters on modules that the other form lacks, are refused by name.

    Args:
        source: A GGUF file, or a directory as MLX or PEFT writes it.
        target: A GGUF file, or a directory that is not there or empty; it appears whole or not at all.
        to: The form.
        base: The model it is for: a directory with config.json, or a GGUF file. Only its settings are read.

    Raises:
        InvalidModelError: The adapter or the model is damaged, of another size than the other, or cannot be converted.
        StoreError: ``target`` holds something.
        DiskFullError: There is no room.
    """
    if to not in FORMS:
        raise UsageError(f"{to!r} is no form of an adapter.", f"Choose from {', '.join(FORMS)}.")
    modules = Modules.of_model(base)
    lora = _read(source, modules)
    for name, pair in lora.pairs.items():
        modules.check_fits(modules.named(name), pair.a, pair.b)
    if to == "gguf":
        write_gguf_adapter(target, lora, modules)
        return
    with new_directory(target) as work:
        (mlx.write_mlx if to == "mlx" else peft.write_peft)(work, lora, modules)


def complete_adapter(store: AdapterStore, models: ModelStore, adapter: AdapterManifest) -> AdapterManifest:
    """Put the other of its two forms beside an installed adapter, so that both engines can use it.

    Returns:
        The adapter with both; as it was where both are here.

    Raises:
        ModelNotFoundError: The model that it is for is not here.
        InvalidModelError: It cannot be converted.
        DiskFullError: There is no room.
    """
    missing: list[Form] = [form for form in ("gguf", "mlx") if form not in adapter.forms]
    if not missing:
        return adapter
    (have,) = adapter.forms
    base = _settings_of(models, models.resolve(adapter.base))
    with tempfile.TemporaryDirectory(dir=store.home.partial, prefix="adapter-") as scratch:
        made = Path(scratch) / ("adapter.gguf" if missing[0] == "gguf" else "adapter")
        convert_adapter(store.path(adapter, have), made, to=missing[0], base=base)
        return store.add_form(adapter, made)


def _settings_of(models: ModelStore, model: Manifest) -> Path:
    file = models.file(model)
    return file if model.format == "gguf" else file.parent


def _read(source: Path, modules: Modules) -> Lora:
    match form_of(source):
        case "gguf":
            return read_gguf(source, modules)
        case "mlx":
            return mlx.read_mlx(source, modules)
        case "peft":
            return peft.read_peft(source, modules)
