"""Which family a model belongs to."""

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.architectures.bert import BERT
from quant.architectures.falcon import FALCON
from quant.architectures.family import Config, Family, Metadata
from quant.architectures.gemma import GEMMA2, GEMMA3
from quant.architectures.llama import LLAMA, MISTRAL, MIXTRAL
from quant.architectures.phi import PHI2, PHI3
from quant.architectures.qwen import OLMOE, QWEN2, QWEN3, QWEN3_MOE

FAMILIES = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    OLMOE,
    GEMMA2,
    GEMMA3,
    PHI3,
    PHI2,
    FALCON,
    BERT,
)


def family_of_config(config: Config) -> Family:
    """The family of a model with this config.json.

    Raises:
        InvalidModelError: It is not known; the message names it.
    """
    name = config.get("model_type")
    for family in FAMILIES:
        if name in family.model_types:
            return family
    raise _unknown(str(name), {family.model_types[0] for family in FAMILIES})


def family_of_metadata(metadata: Metadata) -> Family:
    """The family of a GGUF model.

    Raises:
        InvalidModelError: As for :func:`family_of_config`.
    """
    name = str(metadata.get("general.architecture", ""))
    if name == "llama" and metadata.get("llama.expert_count"):
        return MIXTRAL
    for family in FAMILIES:
        if family.architecture == name:
            return family
    raise _unknown(name, {family.architecture for family in FAMILIES})


def _unknown(name: str, known: set[str]) -> InvalidModelError:
    return InvalidModelError(
        f"The architecture {one_line(name, 60)!r} cannot be converted.", f"These can: {', '.join(sorted(known))}."
    )
