"""A LoRA adapter as mlx-lm's trainer writes it, checked before it is loaded: its settings and its tensors' names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.model_directory import read_model_config, read_safetensors_header

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_LEAVES = frozenset({"lora_a", "lora_b", "m"})  # DoRA has a magnitude besides


@dataclass(frozen=True)
class MLXAdapter:
    """What an adapter's directory says.

    Attributes:
        base: The model it was trained on, as its settings name it: a repository, a path, or empty.
        rank: Of each pair of matrices.
        scale: What their product is multiplied by.
    """

    base: str
    rank: int
    scale: float


def read_mlx_adapter(directory: Path) -> MLXAdapter:
    """Read and check ``adapter_config.json`` and the header of ``adapters.safetensors`` in ``directory``.

    Raises:
        InvalidModelError: They are damaged, or no LoRA adapter.
    """
    config = _config(directory / CONFIG)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise InvalidModelError(f"{CONFIG} is of no LoRA adapter.", "Only LoRA and DoRA adapters can be used.")
    parameters = config.get("lora_parameters")
    rank = parameters.get("rank") if isinstance(parameters, dict) else None
    scale = parameters.get("scale", 1.0) if isinstance(parameters, dict) else None
    if type(rank) is not int or rank < 1 or not isinstance(scale, int | float):
        raise InvalidModelError(
            f"{CONFIG} does not say the rank and the scale of the adapter.",
            "An adapter as mlx-lm writes it can be used; one of PEFT has to be converted first.",
        )
    names = [tensor.name for tensor in read_safetensors_header(directory / WEIGHTS)]
    if not names or any(name.rpartition(".")[2] not in _LEAVES for name in names):
        raise InvalidModelError(f"{WEIGHTS} holds something else than a LoRA adapter.")
    base = config.get("model")
    return MLXAdapter(base if isinstance(base, str) else "", rank, float(scale))


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_model_config(path)
    except InvalidModelError as error:
        raise InvalidModelError(error.message.replace("config.json", CONFIG), "Is the training finished?") from error
