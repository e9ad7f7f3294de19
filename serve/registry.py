"""What a name in a request means: a model of the store, alone or with adapters of the adapter store.

Names are looked up here and nowhere else, so no request can make the server open a path of its choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from localllm.adapters import AdapterManifest, AdapterStore, form_for, split_name
from localllm.errors import ModelNotFoundError, RequestError, UsageError
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore

MAX_ADAPTERS = 8  # of one request


@dataclass(frozen=True)
class Served:
    """A model as a request names it.

    Attributes:
        manifest: The model.
        adapters: The adapters on it, and the scale of each.
    """

    manifest: Manifest
    adapters: tuple[tuple[AdapterManifest, float], ...] = ()

    @property
    def name(self) -> str:
        """``model:variant``, and ``+adapter`` for each adapter."""
        return "+".join([str(self.manifest.model_name), *(adapter.name for adapter, _ in self.adapters)])

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return self.manifest.size + sum(adapter.size for adapter, _ in self.adapters)

    @property
    def weights(self) -> "Served":
        """What one process loads: llama.cpp the model alone, whatever adapters requests name; MLX with its adapter."""
        return Served(self.manifest) if self.manifest.format == "gguf" else self

    @property
    def created(self) -> str:
        """When the newest part of it came, in ISO 8601."""
        return max([self.manifest.created, *(adapter.created for adapter, _ in self.adapters)])


class Registry:
    """Resolves names. Reads the disk: call it in a thread.

    Args:
        models: Where models are.
        adapters: Where adapters are.
    """

    def __init__(self, models: ModelStore, adapters: AdapterStore) -> None:
        self._models = models
        self._adapters = adapters

    def list(self) -> list[Served]:
        """Every model, each followed by those with one adapter that was made for it."""
        found: list[Served] = []
        adapters = self._adapters.list()
        for model in self._models.list():
            found.append(Served(model))
            found += [Served(model, ((adapter, 1.0),)) for adapter in adapters if adapter.is_for(model)]
        return found

    def resolve(self, name: str, more: Sequence[tuple[str, float]] = ()) -> Served:
        """What ``name`` means.

        Args:
            name: ``model[:variant][+adapter…]``; these adapters have the scale 1.
            more: Names and scales of more adapters.

        Raises:
            ModelNotFoundError: The model or an adapter is not here.
            RequestError: The adapters cannot be used together, or not with this model.
        """
        base, names = split_name(name)
        try:
            manifest = self._models.resolve(base)
            chosen = [
                (self._adapters.resolve(name), scale) for name, scale in [*((name, 1.0) for name in names), *more]
            ]
        except UsageError as error:
            # To the API a name that can be none is a name that is not there.
            raise ModelNotFoundError(error.message, error.hint) from None
        _check([adapter for adapter, _ in chosen], manifest)
        adapters = tuple((adapter, scale) for adapter, scale in chosen if scale)
        if manifest.format != "gguf" and (len(adapters) > 1 or any(scale != 1 for _, scale in adapters)):
            raise RequestError(
                "On MLX a model can have one adapter, with the scale 1.", "Use a GGUF file of the model.", "adapters"
            )
        return Served(manifest, adapters)

    def spec_adapter(self, served: Served) -> str:
        """The adapter directory that the model's engine is to be loaded with; empty for none, and for GGUF models."""
        if served.manifest.format == "gguf" or not served.adapters:
            return ""
        return str(self._adapters.path(served.adapters[0][0], "mlx"))

    def request_adapters(self, served: Served) -> tuple[tuple[str, float], ...]:
        """Path and scale of each adapter that requests to the model's engine have to name; none for MLX models."""
        if served.manifest.format != "gguf":
            return ()
        return tuple((str(self._adapters.path(adapter, "gguf")), scale) for adapter, scale in served.adapters)


def _check(adapters: Sequence[AdapterManifest], model: Manifest) -> None:
    if len(adapters) > MAX_ADAPTERS:
        raise RequestError(f"{len(adapters)} adapters are more than {MAX_ADAPTERS}.", param="adapters")
    if len({adapter.name for adapter in adapters}) < len(adapters):
        raise RequestError("An adapter is given twice.", "Name it once, with the scale it should have.", "adapters")
    form = form_for(model)
    for adapter in adapters:
        if form not in adapter.forms:
            needs = "is run by llama.cpp, which needs" if form == "gguf" else "is run by MLX, which needs"
            what = "it as a GGUF file" if form == "gguf" else "it as MLX has trained it"
            raise RequestError(
                f"{model.model_name} {needs} {what}, and the adapter {adapter.name} is not here in that form.",
                "Export the adapter in that form, and pull the result.",
                "adapters",
            )
