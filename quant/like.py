"""One model's types for another of its family: what a GGUF file holds is a plan that can be followed again."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from localllm.errors import QuantizeError, UsageError
from localllm.gguf_header import GGUFHeader
from quant.llama_types import FILE_TYPES, FLOAT_TYPES, file_type_of


def choices_of(header: GGUFHeader, name: str) -> tuple[str, tuple[str, ...]]:
    """A quantized model's choices: the file type that it says it is of, and a rule for each of its matrices.

    Args:
        header: Of all its parts.
        name: What the person calls it.

    Returns:
        As :func:`quant.llama_quantize.quantize_gguf` takes them.

    Raises:
        UsageError: It is not quantized.
    """
    matrices = {tensor.name: tensor for tensor in header.tensors if len(tensor.shape) > 1}
    n_bytes: Counter[str] = Counter()
    for tensor in matrices.values():
        if tensor.type_name not in FLOAT_TYPES:
            n_bytes[tensor.type_name] += tensor.n_bytes
    if not n_bytes:
        raise UsageError(f"{name} is not quantized.", "Give --like a model that is.")
    said = FILE_TYPES.get(header.quantization.lower())
    file_type = said.name if said is not None and said.base not in FLOAT_TYPES else file_type_of(n_bytes)
    return file_type, rules({matrix: tensor.type_name for matrix, tensor in matrices.items()})


def rules(types: Mapping[str, str]) -> tuple[str, ...]:
    """A rule for each tensor, of exactly that name."""
    return tuple(f"{_only(name)}={kind.lower()}" for name, kind in types.items())


def require_covered(header: GGUFHeader, given: Sequence[str], name: str) -> None:
    """Refuse to follow a model of another shape, whose rules leave some matrix out.

    Args:
        header: Of what will be quantized.
        given: As :func:`choices_of` gives them.
        name: The model that they are of.

    Raises:
        QuantizeError: They do.
    """
    covered = {rule.rpartition("=")[0] for rule in given}
    for tensor in header.tensors:
        if len(tensor.shape) > 1 and _only(tensor.name) not in covered:
            raise QuantizeError(f"{name} is of another family: it has no {tensor.name}.", "Choose a type with --to.")


def _only(name: str) -> str:
    return f"^{re.escape(name)}$"
