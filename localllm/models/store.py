"""The model store: one directory with a manifest for each model, under ``models/<name>/<variant>/``."""

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from localllm.errors import InvalidModelError, ModelNotFoundError, StoreError
from localllm.files import subdirectories, sync_directory
from localllm.models.aliases import ALIASES
from localllm.models.manifest import MANIFEST, Manifest, made_by, read_manifest
from localllm.models.names import ModelName, parse_model_name
from localllm.models.workspace import Workspace
from localllm.paths import DIR_MODE, Home

_PREFERRED_VARIANT = "q4_k_m"
# ModelStore.list hides the type's name inside the class.
Paths = list[Path]


class ModelStore:
    """The models of one home. Nothing is cached: another process may add or remove a model at any time.

    Attributes:
        home: Where they are.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.workspace = Workspace(home)

    def list(self) -> list[Manifest]:
        """Every whole model, sorted by name and variant. Damaged ones are in :meth:`damaged`."""
        found = (self._read(directory) for directory in self._directories())
        return [manifest for manifest in found if manifest is not None]

    def damaged(self) -> Paths:
        """Directories in the store without a readable manifest of their own."""
        return [directory for directory in self._directories() if self._read(directory) is None]

    def get(self, name: ModelName) -> Manifest | None:
        """The model of exactly this name and variant; None when it is not here (or damaged)."""
        return self._read(self.home.models / name.name / name.variant) if name.variant else None

    def lineage(self, model: Manifest) -> Iterator[Manifest]:
        """The model, what it was made from, and that from, as far as they are here; names that go in a circle end."""
        seen = set[ModelName]()
        found: Manifest | None = model
        while found is not None and found.model_name not in seen:
            seen.add(found.model_name)
            yield found
            found = self.get(parse_model_name(found.parent.name)) if found.parent else None

    def resolve(self, text: str) -> Manifest:
        """Find a model by ``name[:variant]`` or by an alias (``starter``).

        A name alone means its only variant; of several it means a GGUF before the others, then ``q4_k_m``, then the
        first in the alphabet.

        Raises:
            ModelNotFoundError: No such model; the hint names close ones.
            UsageError: The text is no model name.
        """
        alias = ALIASES.get(text.strip().lower())
        wanted = alias.name if alias else parse_model_name(text)
        models = self.list()
        matching = [
            manifest for manifest in models if manifest.name == wanted.name and wanted.variant in ("", manifest.variant)
        ]
        if alias and not matching:
            # Pulled with --as: it is the same model under another name.
            matching = [manifest for manifest in models if alias.is_of(manifest)]
        if not matching:
            raise ModelNotFoundError(f"There is no model {text.strip()!r} here.", _not_found_hint(text, models))
        return min(
            matching, key=lambda model: (model.format != "gguf", model.variant != _PREFERRED_VARIANT, model.variant)
        )

    def directory(self, manifest: Manifest) -> Path:
        """The model's directory."""
        return self.home.models / manifest.name / manifest.variant

    def file(self, manifest: Manifest) -> Path:
        """What is loaded: the (first) GGUF file, or ``config.json`` of a directory of safetensors.

        Raises:
            InvalidModelError: The file is gone, or the manifest points outside the model's directory.
        """
        return self.paths(manifest)[0]

    def paths(self, manifest: Manifest) -> Paths:
        """Every file of the model, in the manifest's order.

        Raises:
            InvalidModelError: As for :meth:`file`.
        """
        directory = self.directory(manifest)
        paths = []
        for file in manifest.files:
            path = Path(file.path)
            if not path.is_absolute():
                path = directory / path
                if not path.resolve().is_relative_to(directory.resolve()):
                    raise InvalidModelError(f"The manifest of {manifest.model_name} points outside its directory.")
            if not path.is_file():
                where = f"{path} is gone" if Path(file.path).is_absolute() else f"its file {path.name} is missing"
                raise InvalidModelError(
                    f"{manifest.model_name} cannot be used: {where}.", f"Get it again: {made_by(manifest)}"
                )
            paths.append(path)
        return paths

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether every file is there with the size in the manifest (contents are not read)."""
        try:
            sizes = [path.stat().st_size for path in self.paths(manifest)]
        except (InvalidModelError, OSError):
            return False
        return sizes == [file.size for file in manifest.files]

    def is_reference(self, manifest: Manifest) -> bool:
        """Whether the model's files are kept elsewhere (an Ollama store)."""
        return all(Path(file.path).is_absolute() for file in manifest.files)

    def install(self, work: Path, manifest: Manifest) -> Manifest:
        """Make a finished directory (files and ``manifest.json``, on the same disk) appear as a model, in one step.

        A damaged model of the same name is replaced.

        Returns:
            ``manifest``; or the model that was there already, when it is the same.

        Raises:
            StoreError: Another model has the name.
        """
        target = self.directory(manifest)
        for _ in range(3):
            target.parent.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
            try:
                work.rename(target)
            except OSError as error:
                if error.errno == errno.ENOENT and work.exists():
                    continue  # `rm` of the last other variant took the parent away just now
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                existing = self._read(target)
                if existing is not None and self.is_whole(existing):
                    return self.same_or_taken(existing, [file.sha256 for file in manifest.files])
                self.discard(target)
                continue
            sync_directory(target.parent)
            return manifest
        raise StoreError(
            f"{manifest.model_name} could not be put in the store.", "Something else changes it; try again."
        )

    def same_or_taken(self, existing: Manifest, digests: Sequence[str]) -> Manifest:
        """``existing`` when its first files are those of ``digests`` (SHA-256, one a file).

        Raises:
            StoreError: It is another model: the name is taken.
        """
        if [file.sha256 for file in existing.files[: len(digests)]] == list(digests):
            return existing
        raise StoreError(
            f"The name {existing.model_name} is taken by another model, from {existing.source}.",
            "Choose a name with --as NAME, or remove that model first.",
        )

    def remove(self, manifest: Manifest) -> int:
        """Remove a model; files kept elsewhere stay there.

        Returns:
            Bytes freed on the disk: not those of files that have another hard link.
        """
        return self.discard(self.directory(manifest))

    def discard(self, directory: Path) -> int:
        """Remove a model's directory, damaged or not: it disappears in one step, then its files are deleted.

        Returns:
            Bytes freed.

        Raises:
            ModelNotFoundError: It is gone already.
        """
        bin_directory = self.workspace.bin_for(directory)
        try:
            freed = self.would_free(directory)
            directory.rename(bin_directory)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"{directory.parent.name}:{directory.name} is gone already.") from error
        with suppress(OSError):  # another variant is there
            directory.parent.rmdir()
        with suppress(FileNotFoundError):  # another process does the same
            shutil.rmtree(bin_directory)
        return freed

    def would_free(self, directory: Path) -> int:
        """Bytes that :meth:`discard` would free: not those of files that have another hard link."""
        return sum(
            status.st_size
            for path in directory.rglob("*")
            if path.name != MANIFEST
            and path.is_file()
            and not path.is_symlink()
            and (status := path.stat()).st_nlink == 1
        )

    def _directories(self) -> Paths:
        return [variant for name in subdirectories(self.home.models) for variant in subdirectories(name)]

    def _read(self, directory: Path) -> Manifest | None:
        try:
            manifest = read_manifest(directory)
        except InvalidModelError:
            return None
        names_itself = (manifest.name, manifest.variant) == (directory.parent.name, directory.name)
        return manifest if names_itself and manifest.files else None


def _not_found_hint(text: str, models: list[Manifest]) -> str:
    if text.strip().lower() in ALIASES:
        return f"Fetch it with `localllm pull {text.strip().lower()}`."
    names = sorted({name for model in models for name in (model.name, str(model.model_name))})
    close = get_close_matches(text.strip().lower(), names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if models:
        return "`localllm models` lists what is here."
    return "No model is here yet: `localllm pull starter` fetches a small one."
