"""Names of models: ``name[:variant]``, as in ``smollm2-135m:q4_1``."""

import re
from dataclasses import dataclass

from localllm.errors import UsageError

_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class ModelName:
    """A parsed name. ``variant`` is empty when it was not given."""

    name: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.variant}" if self.variant else self.name


def parse_model_name(text: str) -> ModelName:
    """Parse ``name[:variant]``; capitals are folded.

    Only ``a-z 0-9 . _ -`` pass, never a path separator or a leading dot, so a name can safely become a directory.

    Raises:
        UsageError: The text is no model name.
    """
    name, _, variant = text.strip().lower().partition(":")
    if not _PART.fullmatch(name) or (":" in text and not _PART.fullmatch(variant)) or ".." in name + variant:
        raise UsageError(f"{text!r} is not a model name.", "Names look like smollm2-135m or smollm2-135m:q4_1.")
    return ModelName(name, variant)
