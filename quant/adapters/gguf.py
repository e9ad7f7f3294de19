"""Adapters in a GGUF file, as llama.cpp loads them; :mod:`localllm.adapter_gguf` describes the format."""

from pathlib import Path

import numpy as np

from localllm.adapter_gguf import read_adapter_header
from localllm.errors import InvalidModelError
from quant.adapters.lora import EvenLora, Lora, LoraPair
from quant.adapters.names import EMBEDDING, Module, Modules
from quant.architectures.config import shortest
from quant.tensors.dtypes import to_float32
from quant.tensors.gguf_reader import GGUFSource
from quant.tensors.gguf_writer import write_gguf
from quant.tensors.metadata import MetadataValue
from quant.tensors.rows import array_tensor
from quant.tensors.source import Array


def read_gguf(path: Path, modules: Modules) -> Lora:
    """Read an adapter.

    Raises:
        InvalidModelError: It is damaged, for another architecture, or changes a module that other forms lack.
    """
    header = read_adapter_header(path)
    if header.architecture != modules.architecture:
        raise InvalidModelError(
            f"{header.label} is for {header.architecture} models, and this one is {modules.architecture}.",
            "Name the model that it was made for.",
        )
    pairs = {}
    with GGUFSource(path) as source:
        for name in header.pairs:
            module = modules.in_gguf(name.removesuffix(".weight"))
            a, b = (_read(source, name + half) for half in (".lora_a", ".lora_b"))
            rank = b.shape[-1]
            scale = shortest(header.alpha) / rank if header.alpha else 1.0
            a = np.ascontiguousarray(a.T) if module.gguf == EMBEDDING else a
            pairs[module.name] = LoraPair(a, _rows(modules, module, b, to_gguf=False), scale)
    return Lora(pairs, header.base)


def write_gguf_adapter(target: Path, lora: Lora, modules: Modules) -> None:
    """Write an adapter; the file appears whole or not at all.

    Raises:
        InvalidModelError: It changes what llama.cpp cannot change.
    """
    even = lora.even()
    tensors = []
    changed = {modules.named(name): pair for name, pair in even.pairs.items()}
    # Always in one order: the same adapter becomes the same file, whichever form it came in.
    for module, pair in sorted(changed.items(), key=lambda item: item[0].gguf):
        a = pair.a
        if module.gguf == EMBEDDING:
            if modules.tied:  # llama.cpp would use the pair for the output as well, the wrong way round, and die of it
                raise InvalidModelError(
                    f"The adapter changes {module.name}, which is the model's output too: llama.cpp cannot do that.",
                    "Train it without that module.",
                )
            a = np.ascontiguousarray(a.T)
        tensors.append(array_tensor(f"{module.gguf}.weight.lora_a", a))
        tensors.append(array_tensor(f"{module.gguf}.weight.lora_b", _rows(modules, module, pair.b, to_gguf=True)))
    write_gguf(target, _metadata(even, modules.architecture), tensors, on_tensor=lambda *_: None)


def _metadata(even: EvenLora, architecture: str) -> dict[str, MetadataValue]:
    found: dict[str, MetadataValue] = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(even.scale * even.rank),
    }
    if even.base:
        found |= {"general.base_model.count": 1, "general.base_model.0.name": even.base}
    return found


def _rows(modules: Modules, module: Module, b: Array, *, to_gguf: bool) -> Array:
    if b.ndim == 3:  # experts' rows stay as they are
        return b
    return modules.to_gguf_rows(module, b) if to_gguf else modules.to_hf_rows(module, b)


def _read(source: GGUFSource, name: str) -> Array:
    info = source.tensors[name]
    return np.array(to_float32(source.read_rows(name, 0, info.n_rows), info.type_name)).reshape(info.shape)
