"""The adapter store: LoRA adapters under ``adapters/<name>/``, each with a manifest.

An adapter is there in the form that llama.cpp loads (``adapter.gguf``), in the one that MLX loads
(``adapter_config.json`` and ``adapters.safetensors``), or in both. A model with adapters is called
``base+adapter[+adapter2]``, in every command and every API.
"""

import errno
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Literal

from localllm.adapter_gguf import AdapterHeader, check_fit, is_adapter, read_adapter_header
from localllm.adapter_mlx import CONFIG, WEIGHTS, read_mlx_adapter
from localllm.errors import InvalidModelError, LocalLLMError, ModelNotFoundError, StoreError, UsageError
from localllm.files import subdirectories, sync_directory, write_atomic
from localllm.gguf_header import read_gguf_header, read_gguf_parts
from localllm.models.derive import plain_stem, store_name
from localllm.models.manifest import MANIFEST, Manifest, ModelFile
from localllm.models.names import parse_model_name
from localllm.models.store import ModelStore
from localllm.models.transfer import copy_stream, require_room
from localllm.models.workspace import Workspace
from localllm.paths import DIR_MODE, Home

GGUF = "adapter.gguf"
VERSION = 1
Form = Literal["gguf", "mlx"]
_FILES: dict[Form, tuple[str, ...]] = {"gguf": (GGUF,), "mlx": (CONFIG, WEIGHTS)}


@dataclass(frozen=True)
class AdapterManifest:
    """What is known about an adapter, kept as ``manifest.json`` beside its files.

    Attributes:
        name: Its name; unique among adapters.
        base: Name of the model that it was made for, with or without a variant; empty when unknown.
        architecture: Of that model; empty when unknown.
        rank: Of its matrices, the largest where they differ.
        alpha: Their product is multiplied by alpha / rank; 0 means by 1.
        files: In this directory.
        source: The path that it was installed from.
        created: ISO 8601, UTC.
    """

    name: str
    base: str
    architecture: str
    rank: int
    alpha: float
    files: tuple[ModelFile, ...]
    source: str = ""
    created: str = ""

    @property
    def forms(self) -> tuple[Form, ...]:
        """Which of the forms are here."""
        here = {file.path for file in self.files}
        return tuple(form for form, names in _FILES.items() if here.issuperset(names))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def is_for(self, model: Manifest) -> bool:
        """Whether it was made for ``model`` and is here in the form that the model's engine loads."""
        return self.base in (model.name, str(model.model_name)) and form_for(model) in self.forms


# AdapterStore.list hides the type's name inside the class.
Adapters = list[AdapterManifest]


def form_for(model: Manifest) -> Form:
    """The form that the engine of ``model`` loads."""
    return "gguf" if model.format == "gguf" else "mlx"


def split_name(text: str) -> tuple[str, tuple[str, ...]]:
    """``base+adapter[+adapter2]`` as the model's name and the adapters' names; nothing is checked."""
    base, *adapters = text.split("+")
    return base, tuple(adapters)


def is_adapter_source(path: Path) -> bool:
    """Whether :meth:`AdapterStore.install`, not ``pull``, is meant to take what is at ``path``."""
    try:
        if path.is_dir():
            return (path / CONFIG).exists()
        return path.suffix.lower() == ".gguf" and path.is_file() and is_adapter(read_gguf_header(path))
    except InvalidModelError:
        return False  # `pull` says what is wrong with it


class AdapterStore:
    """The adapters of one home. Nothing is cached: another process may add or remove one at any time.

    Attributes:
        home: Where they are.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self._workspace = Workspace(home)

    def list(self) -> Adapters:
        """Every whole adapter, sorted by name."""
        found = map(self._read, subdirectories(self.home.adapters))
        return [adapter for adapter in found if adapter is not None]

    def resolve(self, name: str) -> AdapterManifest:
        """Find an adapter by its name.

        Raises:
            ModelNotFoundError: There is none; the hint names close ones.
            UsageError: The text is no name.
        """
        wanted = _adapter_name(name)
        adapter = self._read(self.home.adapters / wanted)
        if adapter is not None:
            return adapter
        names = [known.name for known in self.list()]
        close = get_close_matches(wanted, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else "`localllm models` lists what is here."
        raise ModelNotFoundError(f"There is no adapter {name.strip()!r} here.", hint)

    def made_for(self, model: Manifest) -> Adapters:
        """The adapters that ``model`` can be used with, as far as is known."""
        return [adapter for adapter in self.list() if adapter.is_for(model)]

    def directory(self, adapter: AdapterManifest) -> Path:
        """The adapter's directory, which is what MLX loads."""
        return self.home.adapters / adapter.name

    def path(self, adapter: AdapterManifest, form: Form) -> Path:
        """What an engine loads: the GGUF file, or the directory.

        Raises:
            InvalidModelError: The adapter is not here in this form, or a file is missing.
        """
        if form not in adapter.forms:
            what = "a GGUF file, which this model needs" if form == "gguf" else "the form that MLX loads"
            raise InvalidModelError(
                f"The adapter {adapter.name} is not here as {what}.", "Export it in that form, and pull the result."
            )
        directory = self.directory(adapter)
        for name in _FILES[form]:
            if not (directory / name).is_file():
                raise InvalidModelError(f"The adapter {adapter.name} has lost its file {name}.", "Pull it again.")
        return directory / GGUF if form == "gguf" else directory

    def install(
        self, source: Path, *, name: str = "", base: str = "", beside: Sequence[Path] = ()
    ) -> tuple[AdapterManifest, bool]:
        """Copy an adapter, check the copy, and make it appear as a whole or not at all.

        Args:
            source: A GGUF file, or a directory with an adapter as mlx-lm writes it (and ``adapter.gguf``, if it has
                one).
            name: What to call it; by default after the file or directory.
            base: Name of the model that it is for; by default found from what the files say and what is here.
            beside: More files to keep with it, such as how it was trained.

        Returns:
            The adapter, and whether it was not here before.

        Raises:
            UsageError: ``name`` can be no name.
            InvalidModelError: It is no adapter, or a damaged one.
            StoreError: The name is taken by another adapter, or the source cannot be read.
            DiskFullError: There is no room.
        """
        default = source.name if source.is_dir() else plain_stem(source.name)
        wanted = _adapter_name(name) if name else store_name(default).name
        self.home.ensure()
        with self._workspace.exclusive(self._workspace.key(f"adapter:{source}"), lambda: None) as work:
            try:
                files = _copy(_sources(source) | {path.name: path for path in beside}, work)
                manifest = self._describe(work, wanted, base, files, str(source))
                write_atomic(work / MANIFEST, _record(manifest))
                return self._appear(work, manifest)
            finally:
                self._workspace.discard(work)

    def add_form(self, adapter: AdapterManifest, source: Path) -> AdapterManifest:
        """Put the same adapter in another form beside the one that is here.

        Args:
            adapter: An installed one.
            source: What :meth:`install` would take.

        Returns:
            The adapter with both forms.

        Raises:
            InvalidModelError: It is no adapter, or one of another rank.
            StoreError: The source cannot be read.
            DiskFullError: There is no room.
        """
        directory = self.directory(adapter)
        with self._workspace.exclusive(self._workspace.key(f"adapter:{directory}"), lambda: None) as work:
            try:
                files = _copy(_sources(source), work)
                made = self._describe(work, adapter.name, adapter.base, files, adapter.source)
                if made.rank != adapter.rank:
                    raise InvalidModelError(f"{source.name} is another adapter than {adapter.name}.")
                kept = tuple(file for file in adapter.files if file.path not in {new.path for new in files})
                both = replace(adapter, architecture=adapter.architecture or made.architecture, files=kept + files)
                for file in files:
                    (work / file.path).replace(directory / file.path)
                # The manifest last: until it names them, the new files are not there.
                write_atomic(directory / MANIFEST, _record(both))
            finally:
                self._workspace.discard(work)
        return both

    def remove(self, adapter: AdapterManifest) -> int:
        """Remove an adapter: it disappears in one step, then its files are deleted. Returns the bytes freed.

        Raises:
            ModelNotFoundError: It is gone already.
        """
        doomed = self.home.partial / f"removed-adapter-{adapter.name}-{time.time_ns()}"
        try:
            self.directory(adapter).rename(doomed)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"The adapter {adapter.name} is gone already.") from error
        shutil.rmtree(doomed)
        return adapter.size

    def _appear(self, work: Path, manifest: AdapterManifest) -> tuple[AdapterManifest, bool]:
        target = self.directory(manifest)
        try:
            work.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            existing = self._read(target)
            if existing is not None and existing.files == manifest.files:
                return existing, False
            raise StoreError(
                f"The name {manifest.name} is taken by another adapter.",
                f"Choose a name with --as NAME, or remove that one: localllm models rm +{manifest.name}",
            ) from None
        sync_directory(target.parent)
        return manifest, True

    def _describe(self, work: Path, name: str, base: str, files: tuple[ModelFile, ...], source: str) -> AdapterManifest:
        here = {file.path for file in files}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        models = ModelStore(self.home).list()
        if GGUF in here:
            header = read_adapter_header(work / GGUF)
            base = base or self._base_of(header, models)
            rank, alpha, architecture = header.rank, header.alpha, header.architecture
        if CONFIG in here:
            trained = read_mlx_adapter(work)
            base = base or (store_name(PurePath(trained.base).name).name if trained.base else "")
            if GGUF not in here:
                rank, alpha = trained.rank, trained.scale * trained.rank
                known = (model.architecture for model in models if base in (model.name, str(model.model_name)))
                architecture = next(known, "")
        return AdapterManifest(name, base, architecture, rank, alpha, files, source, created)

    def _base_of(self, header: AdapterHeader, models: Sequence[Manifest]) -> str:
        """Name of a model that is here and whose matrices the adapter fits; else what the file says."""
        said = store_name(header.base).name if header.base else ""
        store = ModelStore(self.home)
        for model in sorted(models, key=lambda model: model.name != said):
            if model.format != "gguf" or model.architecture != header.architecture:
                continue
            try:
                base = read_gguf_parts(store.paths(model))
                check_fit(header, {tensor.name: tensor for tensor in base.tensors}, base.architecture)
            except LocalLLMError:
                continue  # it does not fit, or cannot be read; others may
            return model.name
        return said

    def _read(self, directory: Path) -> AdapterManifest | None:
        """The adapter in ``directory``; None where there is none, or a damaged one."""
        try:
            record = json.loads((directory / MANIFEST).read_bytes())
            record.pop("version", None)
            files = tuple(ModelFile(**file) for file in record.pop("files"))
            adapter = AdapterManifest(**record, files=files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return adapter if adapter.name == directory.name and adapter.forms else None


def _record(adapter: AdapterManifest) -> str:
    return json.dumps({"version": VERSION, **asdict(adapter)}, indent=2) + "\n"


def _adapter_name(text: str) -> str:
    """``text`` as the name of an adapter, without the ``+`` that it may be written with.

    Raises:
        UsageError: It is none; only what :func:`parse_model_name` lets through can become a directory.
    """
    name = parse_model_name(text.strip().removeprefix("+"))
    if name.variant:
        raise UsageError(f"{text!r} is not an adapter's name.", "Adapters have no variants: leave out the colon.")
    return name.name


def _sources(source: Path) -> dict[str, Path]:
    """The files to copy, by the names that they get.

    Raises:
        StoreError: There is nothing.
        InvalidModelError: What is there is no adapter.
    """
    if source.is_file():
        return {GGUF: source}
    if not source.is_dir():
        raise StoreError(f"There is no file or directory {source}.", "Check the path.")
    forms = [names for names in _FILES.values() if all((source / name).is_file() for name in names)]
    if not forms:
        raise InvalidModelError(
            f"{source.name} holds no adapter.",
            f"Give a .gguf file, or a directory with {CONFIG} and {WEIGHTS} as mlx-lm writes it.",
        )
    return {name: source / name for names in forms for name in names}


def _copy(sources: dict[str, Path], work: Path) -> tuple[ModelFile, ...]:
    """Copies, not links: what was checked must not change, whatever happens to the original."""
    files = []
    try:
        for name, path in sources.items():
            size = path.stat().st_size
            require_room(work, size)
            (work / name).unlink(missing_ok=True)
            with path.open("rb") as handle:
                digest = copy_stream(handle, work / name, limit=size, on_bytes=lambda _: None)
            files.append(ModelFile(name, (work / name).stat().st_size, digest))
    except PermissionError as error:
        raise StoreError(f"{path} cannot be read: permission denied.", "Check the file's permissions.") from error
    work.chmod(DIR_MODE)
    return tuple(files)
