"""What a person asks of llama.cpp's quantizer, and the files of the model that it is asked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError, UsageError
from quant.llama_types import TENSOR_TYPE_NUMBERS, FileType, find_file_type, find_tensor_type

_SPLIT_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class QuantizeChoices:
    """What a person asks of llama.cpp.

    Attributes:
        file_type: The recipe.
        overrides: (regular expression, tensor type): tensors whose name it is found in get that type; the first counts.
        output_type: Tensor type of ``output.weight`` (of the embeddings where they serve as output too).
        embedding_type: Tensor type of the token embeddings.
        pure: All in the base type, without the recipe's mix.
        keep_split: As many files as the source has.
    """

    file_type: FileType
    overrides: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False
    keep_split: bool = False

    @classmethod
    def parse(
        cls,
        file_type: str,
        overrides: Sequence[str] = (),
        output_type: str | None = None,
        embedding_type: str | None = None,
        *,
        pure: bool = False,
        keep_split: bool = False,
    ) -> "QuantizeChoices":
        """From what a person types; an override is ``REGEX=TYPE``.

        Raises:
            UsageError: A type or a regular expression is none.
        """
        return cls(
            find_file_type(file_type),
            tuple(_override(text) for text in overrides),
            find_tensor_type(output_type) if output_type else None,
            find_tensor_type(embedding_type) if embedding_type else None,
            pure,
            keep_split,
        )

    def native(self, **more: Any) -> dict[str, Any]:
        """As :class:`quant.llama_native.NativeOptions` in JSON."""
        return {
            "ftype": self.file_type.number,
            "overrides": [[pattern, TENSOR_TYPE_NUMBERS[kind]] for pattern, kind in self.overrides],
            "output_type": TENSOR_TYPE_NUMBERS[self.output_type] if self.output_type else None,
            "embedding_type": TENSOR_TYPE_NUMBERS[self.embedding_type] if self.embedding_type else None,
            "pure": self.pure,
            "keep_split": self.keep_split,
            **more,
        }


def source_parts(source: Path) -> list[Path]:
    """All files of a model of which ``source`` is the first.

    Raises:
        InvalidModelError: ``source`` is another than the first part.
    """
    found = _SPLIT_PART.match(source.name)
    if not found:
        return [source]
    stem, number, count = found.groups()
    if int(number) != 1:
        raise InvalidModelError(f"{source.name} is a later part of a model.", f"Give {stem}-00001-of-{count}.gguf.")
    return [source.with_name(f"{stem}-{part:05d}-of-{count}.gguf") for part in range(1, int(count) + 1)]


def _override(text: str) -> tuple[str, str]:
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"{text!r} is no rule.", "A rule is REGEX=TYPE, such as ffn_down=q6_k.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}.") from error
    return pattern, find_tensor_type(kind)
