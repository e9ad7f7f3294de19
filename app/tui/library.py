"""What the Models screen reads and does. Everything here touches the disk: call it in a thread."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.cli.models import discard, human_count
from app.cli.output import human_bytes
from localllm.adapters import AdapterManifest, AdapterStore, is_adapter_source, split_name
from localllm.errors import LocalLLMError, UsageError
from localllm.jobs.record import JobSpec
from localllm.memory import fit, gigabytes, machine_memory
from localllm.models.manifest import Manifest
from localllm.models.pull import find_pulled
from localllm.models.pull_job import pull_spec
from localllm.models.sources.local import looks_like_path
from localllm.models.store import ModelStore
from localllm.typed_paths import typed_path

Item = Manifest | AdapterManifest | Path


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Attributes:
        name: As commands take it: ``name:variant``, ``+adapter``.
        item: The model, the adapter, or the directory of a damaged model.
        depth: How many of those that it was made from stand above it.
    """

    name: str
    item: Item
    depth: int = 0

    @property
    def size(self) -> int:
        """Bytes; 0 for what is damaged."""
        return 0 if isinstance(self.item, Path) else self.item.size

    @property
    def type(self) -> str:
        """``Q4_1``; ``LoRA`` for an adapter."""
        match self.item:
            case Manifest():
                return self.item.quantization
            case AdapterManifest():
                return "LoRA"
        return "damaged"


@dataclass(frozen=True)
class Library:
    """The models and adapters of a home.

    Attributes:
        store, adapters: Where they are.
    """

    store: ModelStore
    adapters: AdapterStore

    def entries(self) -> list[Entry]:
        """Everything that is here: each model under the one that it was made from, adapters under their base."""
        models = self.store.list()
        adapters = {adapter.name: adapter for adapter in self.adapters.list()}
        names = {str(model.model_name) for model in models}
        listed: set[str] = set()
        found: list[Entry] = []

        def add(model: Manifest, depth: int) -> None:
            name = str(model.model_name)
            if name in listed:
                return
            listed.add(name)
            found.append(Entry(name, model, depth))
            its_own = [adapter for adapter in adapters.values() if adapter.is_for(model)]
            found.extend(Entry(f"+{adapter.name}", adapters.pop(adapter.name), depth + 1) for adapter in its_own)
            for child in made_from(model, models):
                add(child, depth + 1)

        for model in models:
            if model.parent is None or model.parent.name not in names:
                add(model, 0)
        for model in models:  # manifests that name each other as parents have no beginning
            add(model, 0)
        found.extend(Entry(f"+{adapter.name}", adapter) for adapter in adapters.values())
        found.extend(Entry(f"{path.parent.name}:{path.name}", path) for path in self.store.damaged())
        return found

    def facts(self, entry: Entry, n_ctx: int = 0, memory_gb: float = 0) -> list[tuple[str, str]]:
        """What is known about one of them, as pairs of a word and what stands behind it."""
        item = entry.item
        if isinstance(item, Path):
            return [("damaged", "Its manifest cannot be read. Delete it, and get the model again.")]
        if isinstance(item, AdapterManifest):
            facts = [
                ("adapter", f"rank {item.rank} · {' and '.join(item.forms)} · {human_bytes(item.size)}"),
                ("made for", item.base or "unknown"),
                ("source", item.source),
            ]
        else:
            facts = self._model_facts(item, n_ctx, memory_gb)
        return [(word, text) for word, text in facts if text]

    def chat_name(self, entry: Entry) -> str:
        """What the chat calls it: an adapter is used with a model.

        Raises:
            UsageError: It cannot be chatted with.
        """
        match entry.item:
            case Manifest():
                return entry.name
            case AdapterManifest() as adapter:
                base = next((model for model in self.store.list() if adapter.is_for(model)), None)
                if base is None:
                    raise UsageError(
                        f"The model of {entry.name} is not here in a form that fits.",
                        f"Pull {adapter.base}." if adapter.base else "",
                    )
                return f"{base.model_name}+{adapter.name}"
        raise UsageError(f"{entry.name} is damaged.", "Delete it, and get the model again.")

    def consequences(self, entry: Entry, in_use: Collection[str]) -> list[str]:
        """What a person should know before one is deleted.

        Args:
            entry: It.
            in_use: Models that are loaded or being loaded, as the chat calls them.
        """
        item = entry.item
        if isinstance(item, AdapterManifest):
            said = [f"{human_bytes(item.size)} are freed."]
            used = any(item.name in split_name(name)[1] for name in in_use)
        else:
            directory = item if isinstance(item, Path) else self.store.directory(item)
            said = [f"{human_bytes(self.store.would_free(directory))} are freed."]
            if isinstance(item, Manifest) and self.store.is_reference(item):
                said = [f"Only the reference goes: {item.files[0].path} stays."]
            used = any(entry.name == split_name(name)[0] for name in in_use)
        if used:
            said.append("It is loaded: the chat uses it now.")
        if isinstance(item, Manifest):
            needed = [f"+{adapter.name}" for adapter in self.adapters.made_for(item)]
            made = [str(child.model_name) for child in made_from(item, self.store.list())]
            if made:
                said.append(f"Made from it, and kept: {', '.join(made)}.")
            if needed:
                said.append(f"Of no use without it: {', '.join(needed)}.")
        return said

    def delete(self, entry: Entry) -> str:
        """Delete one; returns what that freed, in words.

        Raises:
            ModelNotFoundError: It is gone already.
        """
        match entry.item:
            case AdapterManifest() as adapter:
                return f"{human_bytes(self.adapters.remove(adapter))} freed"
            case Manifest() as model:
                return discard(self.store, self.store.directory(model))
            case Path() as directory:
                return discard(self.store, directory)

    def fetch_spec(self, source: str) -> JobSpec | str:
        """The job that pulls ``source``; or the name of what is here, where no job is needed.

        Raises:
            UsageError: It is malformed.
            LocalLLMError: It is an adapter that cannot be installed.
        """
        path = typed_path(source)
        if looks_like_path(source) and is_adapter_source(path):
            return f"+{self.adapters.install(path)[0].name}"
        here = find_pulled(source, self.store)
        return pull_spec(source) if here is None else str(here.model_name)

    def _model_facts(self, model: Manifest, n_ctx: int, memory_gb: float) -> list[tuple[str, str]]:
        parts = [
            model.architecture,
            f"{human_count(model.parameters)} parameters" if model.parameters else "",
            model.quantization,
            model.format,
            human_bytes(model.size),
        ]
        context = f"{model.n_ctx_train:,} tokens in training" if model.n_ctx_train else ""
        return [
            ("model", " · ".join(part for part in parts if part)),
            ("context", context),
            ("memory", self._memory(model, n_ctx, memory_gb)),
            ("licence", model.licence),
            ("source", "" if model.parent else model.source),
            ("made from", model.parent.name if model.parent else ""),
            ("by", model.parent.how if model.parent else ""),
            ("fetched" if model.parent is None else "made", model.created),
            ("", "" if self.store.is_whole(model) else "A file is missing or cut: pull or make it again."),
        ]

    def _memory(self, model: Manifest, n_ctx: int, memory_gb: float) -> str:
        # 20 ms of imports that only the details need.
        from localllm.memory_safetensors import files_shape

        try:
            found = fit(files_shape(self.store.paths(model)), machine_memory(memory_gb), n_ctx)
        except LocalLLMError as error:
            return f"unknown: {error.message}"
        needs = f"{gigabytes(found.need.total)} with {found.n_ctx:,} tokens of context"
        return f"fits: {needs}" if found.fits else f"too big here: {needs}"


def made_from(model: Manifest, models: Sequence[Manifest]) -> list[Manifest]:
    """Those of ``models`` whose parent is ``model``."""
    children = [other for other in models if other.parent is not None and other.parent.name == str(model.model_name)]
    return [child for child in children if child is not model]
