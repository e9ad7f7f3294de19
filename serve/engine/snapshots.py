"""The KV of long prefixes on the disk, so that a long document is read once and not at every start.

One file a prefix: a line of JSON, the token ids, llama.cpp's state of the sequence. It is found by whose it is (API key
and adapters), by what the state depends on, and by its tokens. A file that is damaged, or of another kind, is removed.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from localllm.paths import FILE_MODE
from localllm.snapshots import CLEARED, SUFFIX, ensure_directory
from serve.engine.prefix import Parked, n_common
from serve.engine.request import Owner, State, Tokens

log = logging.getLogger(__name__)

# Shorter prefixes are computed again in less time than their files are worth.
MIN_TOKENS = 256
_FORMAT = 1
_LONGEST_HEADER = 4096


@dataclass(frozen=True, eq=False)  # its tokens are an array
class Snapshot:
    """A file, whose it is, and the tokens that it holds the KV of."""

    path: Path
    owner: str
    tokens: Tokens
    digest: str


class Snapshots:
    """The snapshots of one model. Used by the engine's thread only.

    Args:
        directory: The model's own, beside those of other models.
        max_bytes: What the snapshots of all models may take together.
        kind: What a state depends on besides the model and the tokens: type of the cache, version of llama.cpp.
    """

    def __init__(self, directory: Path, max_bytes: int, kind: str) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._kind = kind
        self._entries = self._read_all()

    def find(self, wanted: Tokens, owner: Owner, at_least: int) -> tuple[Snapshot, State] | None:
        """The snapshot that begins most like ``wanted``, and its state; None where none is long enough.

        Args:
            wanted: A prompt.
            owner: Whose.
            at_least: Tokens that it must have in common with ``wanted``.
        """
        name = _name(owner)
        alike = [(n_common(entry.tokens, wanted), entry) for entry in self._entries if entry.owner == name]
        length, entry = max(alike, key=lambda pair: pair[0], default=(0, None))
        if entry is None or length < max(at_least, MIN_TOKENS):
            return None
        state = self._load(entry)
        return None if state is None else (entry, state)

    def save(self, parked: Parked, read_state: Callable[[int], State]) -> None:
        """Keep a sequence, where that is worth it; a disk that is full only says so in the log."""
        owner = _name(parked.owner)
        if len(parked.tokens) < MIN_TOKENS or self._is_cleared(parked.born):
            return
        known = [entry for entry in self._entries if entry.owner == owner]
        if any(n_common(entry.tokens, parked.tokens) == len(parked.tokens) for entry in known):
            return
        contained = [entry for entry in known if n_common(entry.tokens, parked.tokens) == len(entry.tokens)]
        try:
            new = self._write(owner, parked.tokens, read_state(parked.seq))
        except OSError as error:
            log.warning("a prefix of %d tokens is not kept on the disk: %s", len(parked.tokens), error.strerror)
            return
        if new is not None:
            for entry in contained:
                if entry in self._entries:  # making room may have taken it
                    self._remove(entry)
            self._entries.append(new)

    def _write(self, owner: str, tokens: Tokens, state: State) -> Snapshot | None:
        digest = _digest(tokens, state)
        header = {
            "format": _FORMAT,
            "kind": self._kind,
            "owner": owner,
            "n_tokens": len(tokens),
            "digest": digest,
        }
        line = json.dumps(header).encode() + b"\n"
        ensure_directory(self._directory)
        if not self._make_room(len(line) + tokens.nbytes + len(state)):
            return None
        path = self._directory / (blake2b(line, digest_size=16).hexdigest() + SUFFIX)
        work = path.with_suffix(f".{os.getpid()}")
        try:
            descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                for part in (line, tokens.data, state.data):
                    file.write(part)
            work.rename(path)
        finally:
            work.unlink(missing_ok=True)
        return Snapshot(path, owner, tokens, digest)

    def _make_room(self, n_bytes: int) -> bool:
        """Remove the least recently used snapshots of all models until ``n_bytes`` more may be kept."""
        found = [(status.st_mtime_ns, status.st_size, path) for path, status in _files(self._directory.parent)]
        room = self._max_bytes - n_bytes - sum(size for _, size, _ in found)
        if n_bytes > self._max_bytes:
            return False
        for _, size, path in sorted(found):
            if room >= 0:
                break
            path.unlink(missing_ok=True)
            self._entries = [entry for entry in self._entries if entry.path != path]
            room += size
        return True

    def _load(self, entry: Snapshot) -> State | None:
        try:
            data = entry.path.read_bytes()
            os.utime(entry.path)  # least recently used goes first
        except FileNotFoundError:  # another engine made room, or a text was deleted
            self._entries.remove(entry)
            return None
        except OSError as error:
            log.warning("a snapshot cannot be read: %s", error.strerror)
            self._entries.remove(entry)
            return None
        start = data.find(b"\n") + 1
        state: State = np.frombuffer(data, np.uint8)[start + entry.tokens.nbytes :]
        if _digest(entry.tokens, state) != entry.digest:
            log.warning("a damaged snapshot was removed")
            self._remove(entry)
            return None
        return state

    def skip(self, entry: Snapshot) -> None:
        """Do not find it again in this process: there is no room for it."""
        self._entries.remove(entry)

    def _read_all(self) -> list[Snapshot]:
        if not self._directory.is_dir():
            return []
        entries = []
        for path in self._directory.iterdir():
            entry = self._read(path)
            if entry is not None:
                entries.append(entry)
            else:
                path.unlink(missing_ok=True)
        return entries

    def _read(self, path: Path) -> Snapshot | None:
        """What a file says it holds; None where it is damaged, unfinished or of another kind."""
        if path.suffix != SUFFIX:
            return None
        with path.open("rb") as file:
            try:
                header: dict[str, Any] = json.loads(file.readline(_LONGEST_HEADER))
                if header["format"] != _FORMAT or header["kind"] != self._kind:
                    return None
                tokens = np.frombuffer(file.read(4 * header["n_tokens"]), np.int32)
                whole = len(tokens) == header["n_tokens"]
                return Snapshot(path, str(header["owner"]), tokens, str(header["digest"])) if whole else None
            except (ValueError, KeyError, TypeError):  # not JSON, not an object, not ours
                return None

    def _remove(self, entry: Snapshot) -> None:
        self._entries.remove(entry)
        entry.path.unlink(missing_ok=True)

    def _is_cleared(self, born: float) -> bool:
        """Whether texts have been deleted since ``born``, seconds since the epoch."""
        try:
            return (self._directory.parent / CLEARED).stat().st_mtime >= born
        except FileNotFoundError:
            return False


def _files(root: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in root.glob(f"*/*{SUFFIX}"):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:  # another engine has just removed it
            continue
    return found


def _name(owner: Owner) -> str:
    """An owner's name in a file: neither a key nor a path."""
    client, adapters = owner
    text = json.dumps([client, [[adapter.fingerprint, adapter.scale] for adapter in adapters]])
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(tokens: Tokens, state: State) -> str:
    digest = blake2b(tokens.data, digest_size=16)
    digest.update(state.data)
    return digest.hexdigest()
