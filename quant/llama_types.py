"""The types that llama.cpp quantizes to: what a person can name, what each costs, and what it needs.

A *file type* (``q4_k_m``) is a recipe that gives every tensor a *tensor type* (``Q4_K``, ``Q6_K``); which one,
llama.cpp says itself (:mod:`quant.llama_plan`). The numbers are those of ``llama.h`` and ``ggml.h``.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from localllm.errors import UsageError
from localllm.gguf_types import TENSOR_TYPES

ImatrixNeed = Literal["required", "recommended", "unused"]


@dataclass(frozen=True)
class FileType:
    """One recipe.

    Attributes:
        name: In small letters, as a person types it.
        number: ``llama_ftype``, which the file holds as ``general.file_type``.
        base: The tensor type of most weights.
        bits: Bits per weight over all parameters of a large model (measured by llama.cpp's authors on Llama 3.1 8B for
            the mixes); a small model's embeddings weigh more. A plan gives the exact figure.
        imatrix: ``required`` (llama.cpp refuses without one), ``recommended``, or ``unused`` (changes nothing).
        description: What it is good for.
    """

    name: str
    number: int
    base: str
    bits: float
    imatrix: ImatrixNeed
    description: str

    @property
    def block(self) -> int:
        """Weights in a block of the base type: rows that are no multiple of it get another type."""
        return next(kind.block for kind in TENSOR_TYPES.values() if kind.name == self.base)


_ALL = (
    FileType("f32", 0, "F32", 32.0, "unused", "32-bit floats: exact, for conversion and for measuring"),
    FileType("f16", 1, "F16", 16.0, "unused", "half floats: nothing is lost that can be measured"),
    FileType("bf16", 32, "BF16", 16.0, "unused", "the range of 32 bits, as most models are trained"),
    FileType("q8_0", 7, "Q8_0", 8.5, "unused", "as good as the original, at half its size"),
    FileType("q6_k", 18, "Q6_K", 6.56, "recommended", "very close to the original"),
    FileType("q5_k_m", 17, "Q5_K", 5.70, "recommended", "a little better than q4_k_m, a sixth larger"),
    FileType("q5_k_s", 16, "Q5_K", 5.57, "recommended", "5 bits, without the mix"),
    FileType("q5_1", 9, "Q5_1", 6.0, "recommended", "5 bits, old form: for rows that K-quants cannot take"),
    FileType("q5_0", 8, "Q5_0", 5.5, "recommended", "5 bits, old form: for rows that K-quants cannot take"),
    FileType("q4_k_m", 15, "Q4_K", 4.89, "recommended", "the usual choice: small, fast, good"),
    FileType("q4_k_s", 14, "Q4_K", 4.67, "recommended", "4 bits, a little smaller than q4_k_m"),
    FileType("iq4_nl", 25, "IQ4_NL", 4.68, "recommended", "4 bits, non-linear, blocks of 32"),
    FileType("iq4_xs", 30, "IQ4_XS", 4.46, "recommended", "4 bits, non-linear: smaller than q4_k_s, as good"),
    FileType("q4_1", 3, "Q4_1", 5.0, "recommended", "4 bits with a minimum, old form: what MLX's 4 bits become"),
    FileType("q4_0", 2, "Q4_0", 4.5, "recommended", "4 bits, old form: the fastest on many processors"),
    FileType("mxfp4_moe", 38, "MXFP4", 4.25, "unused", "experts in 4-bit floats, the rest q8_0: mixture-of-experts"),
    FileType("q3_k_l", 13, "Q3_K", 4.30, "recommended", "3 bits, the important tensors in 5"),
    FileType("q3_k_m", 12, "Q3_K", 4.00, "recommended", "3 bits: visibly worse than 4"),
    FileType("q3_k_s", 11, "Q3_K", 3.64, "recommended", "3 bits, without the mix"),
    FileType("iq3_m", 27, "IQ3_S", 3.76, "recommended", "3 bits, better than q3_k_m at less"),
    FileType("iq3_s", 26, "IQ3_S", 3.66, "recommended", "3 bits from a code book"),
    FileType("iq3_xs", 22, "IQ3_S", 3.50, "required", "3 bits from a code book, smaller"),
    FileType("iq3_xxs", 23, "IQ3_XXS", 3.25, "required", "the smallest that stays usable in small models"),
    FileType("q2_k", 10, "Q2_K", 3.16, "recommended", "2 bits, the important tensors in 3 and 4"),
    FileType("q2_k_s", 21, "Q2_K", 2.97, "required", "2 bits, without the mix"),
    FileType("iq2_m", 29, "IQ2_S", 2.93, "required", "2 bits from a code book: for very large models"),
    FileType("iq2_s", 28, "IQ2_XS", 2.74, "required", "2 bits from a code book"),
    FileType("iq2_xs", 20, "IQ2_XS", 2.59, "required", "2 bits from a code book"),
    FileType("iq2_xxs", 19, "IQ2_XXS", 2.38, "required", "2 bits from a code book"),
    FileType("iq1_m", 31, "IQ1_M", 2.15, "required", "below 2 bits: only for models far too large otherwise"),
    FileType("iq1_s", 24, "IQ1_S", 2.00, "required", "below 2 bits: only for models far too large otherwise"),
    FileType("tq2_0", 37, "TQ2_0", 2.06, "unused", "ternary weights, for models trained so"),
    FileType("tq1_0", 36, "TQ1_0", 1.69, "unused", "ternary weights packed tighter, for models trained so"),
    FileType("q2_0", 41, "Q2_0", 2.25, "unused", "2 bits in groups of 64, for models trained so"),
    FileType("q1_0", 40, "Q1_0", 1.13, "unused", "one bit, for models trained so"),
)
FILE_TYPES: dict[str, FileType] = {file_type.name: file_type for file_type in _ALL}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "fp16": "f16", "fp32": "f32"}

FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
# What single tensors may be set to: everything that ggml has a quantizer for.
_NOT_WEIGHTS = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
TENSOR_TYPE_NUMBERS: dict[str, int] = {
    kind.name: number for number, kind in TENSOR_TYPES.items() if kind.name not in _NOT_WEIGHTS
}
# ggml asserts that it is given an importance matrix for these (ggml_quantize_requires_imatrix).
ASSERTS_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
# llama.cpp refuses these without one, but for embeddings and output (tensor_requires_imatrix); Q2_K in q2_k_s only.
REFUSED_WITHOUT_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


def find_file_type(name: str) -> FileType:
    """The recipe that a person means (``Q4_K_M``, ``q4-k-m``, ``q4_k``).

    Raises:
        UsageError: There is none of that name.
    """
    plain = name.strip().lower().replace("-", "_")
    found = FILE_TYPES.get(ALIASES.get(plain, plain))
    if found is None:
        close = difflib.get_close_matches(plain, FILE_TYPES, n=3, cutoff=0.5)
        hint = f"Perhaps {' or '.join(close)}?" if close else f"There are: {', '.join(FILE_TYPES)}."
        raise UsageError(f"{name!r} is no type that llama.cpp quantizes to.", hint)
    return found


def file_type_of(n_bytes: Mapping[str, int]) -> str:
    """The recipe that a mix of types is called after: that of the tensor type which takes most bytes."""
    most = max(n_bytes, key=lambda kind: n_bytes[kind])
    return next((name for name, known in FILE_TYPES.items() if known.base == most), "q8_0")


def find_tensor_type(name: str) -> str:
    """The tensor type that a person means, as llama.cpp prints it (``q4_k`` gives ``Q4_K``).

    Raises:
        UsageError: There is none of that name.
    """
    plain = name.strip().upper().replace("-", "_")
    if plain not in TENSOR_TYPE_NUMBERS:
        hint = f"There are: {', '.join(TENSOR_TYPE_NUMBERS).lower()}."
        if plain.lower() in FILE_TYPES:
            hint = f"{plain.lower()} is a mix for whole files. {hint}"
        raise UsageError(f"{name!r} is no type of a single tensor.", hint)
    return plain
