"""Listing a hub repository and fetching its files, through ``huggingface_hub``."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from localllm import __version__
from localllm.errors import ChecksumError, DiskFullError, InvalidModelError, NetworkError
from localllm.files import disk_full_as_error
from localllm.models.manifest import ModelFile
from localllm.models.sources.hub_errors import OFFLINE_SWITCH, hub_errors
from localllm.models.transfer import Report, counting, import_file, sha256_of
from localllm.paths import FILE_MODE
from localllm.sanitize import one_line

# huggingface_hub is imported inside the functions: it costs 0.3 s and a hundred modules, and only a pull needs it.

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{40,64}", re.ASCII)
# In place of the package's own, which names the versions of everything that is installed here.
_PLAIN_AGENT = {"user-agent": f"localllm/{__version__}"}
_BROKEN_CONNECTIONS = 5  # in a row, without one new byte
_PAUSE_SECONDS = 0.5  # after a broken connection; doubled after each that brought nothing


Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        path: In the repository, with forward slashes.
        size: Bytes.
        sha256: Of a large file (Git LFS or Xet); empty for a small one.
        git_sha1: Git's name of the content of a small file; empty when unknown.
        cached: Where the hub's own cache holds it; None when it does not.
    """

    path: str
    size: int
    sha256: str
    git_sha1: str
    cached: Path | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        commit: Its hash.
        licence: As its card says.
        files: All that it holds.
        configs: Of a data set: its parts, as its card describes them.
    """

    commit: str
    licence: str
    files: tuple[HubFile, ...]
    configs: tuple[dict[str, Any], ...] = ()


def list_repository(repository: str, revision: str, kind: Kind = "model") -> Listing:
    """List a repository: from the hub, or, with the offline switch on, what the cache holds of it.

    Raises:
        SourceNotFoundError, AccessDeniedError, NetworkError: As they are named.
        InvalidModelError: The answer makes no sense.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache  # deferred: see the top

    if constants.is_offline_mode():
        return _list_cache(repository, revision, kind)
    with hub_errors(repository, revision):
        api = HfApi(endpoint=constants.ENDPOINT, headers=_PLAIN_AGENT)
        ask: Callable[..., Any] = api.model_info if kind == "model" else api.dataset_info
        info = ask(
            repository, revision=revision or None, files_metadata=True, timeout=constants.DEFAULT_REQUEST_TIMEOUT
        )
    if not info.sha:
        raise InvalidModelError(f"The hub does not say which commit of {repository} this is.", "Is HF_ENDPOINT right?")
    files = []
    for sibling in info.siblings or ():
        if sibling.size is None or ".." in sibling.rfilename.replace("\\", "/").split("/"):
            continue  # a path out of the repository has no business in a listing
        found = try_to_load_from_cache(
            repository, sibling.rfilename, revision=info.sha, cache_dir=constants.HF_HUB_CACHE, repo_type=kind
        )
        cached = Path(found) if isinstance(found, str) else None
        sha256 = sibling.lfs.sha256 if sibling.lfs else ""
        files.append(HubFile(sibling.rfilename, sibling.size, sha256, "" if sha256 else sibling.blob_id or "", cached))
    licence = info.card_data.get("license") if info.card_data else ""
    configs = info.card_data.get("configs") if info.card_data else None
    return Listing(
        info.sha,
        one_line(licence, 60) if isinstance(licence, str) else "",
        tuple(files),
        tuple(config for config in configs if isinstance(config, dict)) if isinstance(configs, list) else (),
    )


def _list_cache(repository: str, revision: str, kind: Kind) -> Listing:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir  # deferred: see the top

    wanted = revision or constants.DEFAULT_REVISION
    revisions: list[Any] = []
    with suppress(CacheNotFound):
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
        revisions = [
            found
            for repo in repositories
            if repo.repo_type == kind and repo.repo_id == repository
            for found in repo.revisions
            if wanted in found.refs or found.commit_hash == wanted
        ]
    if not revisions:
        raise NetworkError(
            f"The hub is switched off ({OFFLINE_SWITCH}), and its cache holds nothing of {repository}.",
            f"Unset {OFFLINE_SWITCH} to fetch it.",
        )
    files = []
    for file in revisions[0].files:
        blob = Path(file.blob_path).name
        path = Path(file.file_path).relative_to(revisions[0].snapshot_path).as_posix()
        sha256 = blob if _SHA256.fullmatch(blob) else ""
        files.append(HubFile(path, file.size_on_disk, sha256, "" if sha256 else blob, Path(file.file_path)))
    return Listing(revisions[0].commit_hash, "", tuple(sorted(files, key=lambda file: file.path)))


def fetch_file(
    repository: str, commit: str, file: HubFile, work: Path, report: Report, kind: Kind = "model"
) -> ModelFile:
    """Bring one file into ``work``: from the cache, or from the hub, going on with a partial one.

    A file under way is ``<content's hash>.part``, so another version of the file is never appended to it. One that
    an earlier, interrupted pull left whole is under its own name, and is checked again like any other.

    Raises:
        ChecksumError: The content is wrong; the file is gone.
        NetworkError: The connection broke; the partial file stays.
        DiskFullError: There is no room; the partial file is gone.
    """
    target = work / file.name
    if target.exists():
        kept_sha256 = sha256_of(target, counting(report, "verify", file.size, file.name))
        if _is_right(file, target, kept_sha256):
            return ModelFile(file.name, file.size, kept_sha256)
        target.unlink()  # of another commit
    if file.cached is not None:
        stored = import_file(file.cached, target, report)
        if _is_right(file, target, stored.sha256):
            return stored
        target.unlink()  # the cache is damaged
    part = work / f"{_content_key(commit, file)}.part"
    try:
        _download(repository, commit, file, part, report, kind)
    except DiskFullError:
        part.unlink(missing_ok=True)
        raise
    sha256 = sha256_of(part, counting(report, "verify", file.size, file.name))
    if not _is_right(file, part, sha256):
        part.unlink()
        raise ChecksumError(
            f"{file.name} is not what the hub promised: its checksum is wrong.",
            "It was removed. Run the same command again; if it stays wrong, the repository is damaged.",
        )
    part.replace(target)
    return ModelFile(file.name, file.size, sha256)


def _content_key(commit: str, file: HubFile) -> str:
    key = file.sha256 or file.git_sha1
    # The key becomes a file's name: anything but hex from the hub is not taken as it is.
    return key if _HEX.fullmatch(key) else hashlib.sha256(f"{commit}/{file.path}/{key}".encode()).hexdigest()


def _download(repository: str, commit: str, file: HubFile, part: Path, report: Report, kind: Kind) -> None:
    """Fetch until ``part`` is whole, starting again after a broken connection as long as that brings new bytes."""
    import httpx2  # deferred: comes with huggingface_hub
    from huggingface_hub import constants, hf_hub_url

    url = hf_hub_url(repository, file.path, repo_type=kind, revision=commit, endpoint=constants.ENDPOINT)
    on_bytes = counting(report, "download", file.size, file.name)
    begun, broken = False, 0
    with hub_errors(repository, commit), disk_full_as_error(part):
        part.touch(FILE_MODE)
        while (have := part.stat().st_size) < file.size:
            try:
                _stream(url, part, have, file, on_bytes)
            except httpx2.TransportError:
                grown = part.stat().st_size > have
                begun = begun or grown
                broken = 0 if grown else broken + 1
                if not begun or broken >= _BROKEN_CONNECTIONS:
                    raise
                time.sleep(_PAUSE_SECONDS * 2**broken)


def _stream(url: str, part: Path, have: int, file: HubFile, on_bytes: Callable[[int], None]) -> None:
    """One request for what is missing after the first ``have`` bytes."""
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in __all__

    # Compressed transfers cannot be continued by position.
    headers = {**build_hf_headers(headers=_PLAIN_AGENT), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        done = have if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0  # else it sends everything again
        with part.open("ab") as handle:
            handle.truncate(done)
            for chunk in response.iter_bytes():
                done += len(chunk)
                if done > file.size:
                    break
                handle.write(chunk)
                on_bytes(done)
            handle.flush()
            os.fsync(handle.fileno())
    if done != file.size:
        part.unlink()
        raise ChecksumError(
            f"{file.name} has another size than the hub promised ({file.size:,} bytes).", "Run the same command again."
        )


def _is_right(file: HubFile, path: Path, sha256: str) -> bool:
    if file.sha256:
        return sha256 == file.sha256
    if file.git_sha1:
        return _git_sha1(path) == file.git_sha1
    return path.stat().st_size == file.size


def _git_sha1(path: Path) -> str:
    """What Git calls this content: only small files are checked with it."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
