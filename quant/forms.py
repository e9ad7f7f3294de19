"""The forms that a model can be exported to: ``gguf:f16``, ``hf:bf16``, ``mlx``."""

from dataclasses import dataclass

from localllm.errors import UsageError
from localllm.models.manifest import Manifest

_TYPES = {"gguf": ("f16", "bf16", "f32", "q8_0"), "hf": ("bf16", "f16", "f32"), "mlx": ("bf16", "f16", "f32")}


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        kind: ``gguf``, ``hf`` or ``mlx``; the last two are the same directory, which both libraries load.
        type: Of its weights: ``f16``, ``bf16``, ``f32``, ``q8_0``.
    """

    kind: str
    type: str

    @property
    def variant(self) -> str:
        """What a model in this form is called after its colon."""
        return self.type if self.kind == "gguf" else f"{self.kind}-{self.type}"

    def __str__(self) -> str:
        return f"{self.kind}:{self.type}"


def parse_form(text: str, parent: Manifest) -> Form:
    """Parse ``KIND[:TYPE]``; without a type, bfloat16 for a model that has it, else F16.

    Raises:
        UsageError: There is no such form, or the model is in it already.
    """
    kind, _, wanted = text.strip().lower().partition(":")
    if kind not in _TYPES:
        raise UsageError(f"{text!r} is no form of a model.", f"Choose from {', '.join(listed_forms())}.")
    chosen = wanted or ("bf16" if parent.quantization.upper() == "BF16" else "f16")
    if chosen not in _TYPES[kind]:
        raise UsageError(
            f"{kind} models have no type {wanted!r}.",
            f"Choose from {', '.join(_TYPES[kind])}. `localllm quantize` has others.",
        )
    same_kind = (kind == "gguf") == (parent.format == "gguf") and parent.format != "mlx"
    if same_kind and parent.quantization.lower() == chosen:
        raise UsageError(f"{parent.model_name} is {kind} in {chosen} already.", "Choose another form.")
    return Form(kind, chosen)


def listed_forms() -> tuple[str, ...]:
    """Every form, as a person writes it."""
    return tuple(f"{kind}:{name}" for kind, names in _TYPES.items() for name in names)
