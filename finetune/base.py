"""Loading the model that is to be trained, in the float type that this machine computes fastest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from localllm.errors import InvalidModelError

# What mlx-lm raises for a directory that is not what it expects.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Base:
    """A model's modules, without adapters.

    Attributes:
        model: In evaluation mode.
        config: Its config.json.
        n_vocab: Width of its logits.
        compute: Float type of activations, and of the adapters while they are used.
        on_cpu: There is no GPU: no fused attention, and only fp32 has a fast matrix product.
    """

    model: nn.Module
    config: dict[str, Any]
    n_vocab: int
    compute: mx.Dtype
    on_cpu: bool


def load_base(directory: Path) -> Base:
    """Load a directory in MLX's or Hugging Face's form.

    On a CPU everything becomes fp32, 4-bit weights too: 16-bit and quantized products run at 2-5 GFLOP/s there, fp32
    at a hundred. On a GPU 4-bit weights stay as they are (QLoRA), and the others are in bf16.

    Raises:
        InvalidModelError: mlx-lm cannot load it.
    """
    from mlx_lm.utils import dequantize_model, load_model  # deferred: 2 s

    on_cpu = mx.default_device() == mx.cpu
    try:
        model, config = load_model(directory, lazy=True, trust_remote_code=False)
        if on_cpu:
            model = dequantize_model(model)
            model.set_dtype(mx.float32)
        elif "quantization" not in config:
            model.set_dtype(mx.bfloat16)
        mx.eval(model.parameters())
        model.eval()
        logits = model(mx.array([[0]]))
    except _LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidModelError(
            f"mlx-lm cannot load this model for training: {reason.rstrip('.')}.",
            "Its architecture may be too new for the installed mlx-lm, or a file is damaged: pull the model again.",
        ) from error
    return Base(model, config, int(logits.shape[-1]), mx.float32 if on_cpu else mx.bfloat16, on_cpu)
