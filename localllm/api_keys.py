"""API keys: who may use the server, and for what.

A key is 256 random bits, shown once and kept as its SHA-256 only. A slow hash (argon2, scrypt) protects passwords,
which can be guessed; nobody guesses 256 random bits, and a slow hash would have to be computed for every request.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock

from localllm.errors import SettingsError, UsageError
from localllm.files import write_atomic
from localllm.paths import FILE_MODE, Home

SCOPES = {
    "chat": "answers of every kind, and tokens",
    "embed": "embeddings and reranking",
    "models": "listing, loading and unloading models",
    "metrics": "the figures of /metrics",
    "admin": "everything, stopping the server too",
}
DEFAULT_SCOPES = ("chat", "embed", "models")
_PREFIX = "localllm-"  # so that a key is recognised where it should not be, by people and by scanners
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


def digest(key: str) -> bytes:
    """SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key.

    Attributes:
        name: Chosen by the person.
        scopes: What it may be used for; names of :data:`SCOPES`.
        sha256: Of the key, in hexadecimal.
        created: When, in ISO 8601.
    """

    name: str
    scopes: tuple[str, ...]
    sha256: str
    created: str

    def allows(self, scope: str) -> bool:
        """Whether the key may be used for ``scope``."""
        return scope in self.scopes or "admin" in self.scopes


class KeyStore:
    """The keys of one home, in ``keys.json`` (0600).

    Args:
        home: Where the file is.
    """

    def __init__(self, home: Home) -> None:
        self._path = home.keys_file
        self._lock = FileLock(home.locks / "keys.lock", mode=FILE_MODE)

    def list(self) -> list[ApiKey]:
        """Every key, in order of creation.

        Raises:
            SettingsError: The file is damaged or cannot be read.
        """
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            return [_key(item) for item in record["keys"]]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SettingsError(f"{self._path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"{self._path} is damaged, so no key of it is accepted.", "Remove it and make new keys."
            ) from error

    def add(self, name: str, scopes: Sequence[str] = DEFAULT_SCOPES) -> str:
        """Make a key; returns it, and nothing can return it again.

        Raises:
            UsageError: The name is taken or can be none, or a scope is unknown.
            SettingsError: The file is damaged.
            DiskFullError: There is no room; the file is as it was.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be the name of a key.", "Use small letters, digits, '.', '_' and '-'.")
        if unknown := [scope for scope in scopes if scope not in SCOPES]:
            raise UsageError(f"There is no scope {unknown[0]!r}.", f"There are: {', '.join(SCOPES)}.")
        key = _PREFIX + secrets.token_urlsafe(32)
        with self._lock:
            keys = self.list()
            if any(known.name == name for known in keys):
                raise UsageError(f"There is a key {name!r} already.", f"Remove it with `localllm keys rm {name}`.")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            chosen = tuple(scope for scope in SCOPES if scope in scopes)
            self._write([*keys, ApiKey(name, chosen, digest(key).hex(), created)])
        return key

    def remove(self, name: str) -> int:
        """Forget a key; a running server refuses it from then on. Returns how many are left.

        Raises:
            UsageError: There is none of that name.
            SettingsError: The file is damaged.
        """
        with self._lock:
            keys = self.list()
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise UsageError(f"There is no key {name!r}.", "`localllm keys ls` lists them.")
            self._write(left)
        return len(left)

    def stamp(self) -> tuple[int, ...]:
        """What differs after every change of the file; one call of ``stat``, some two microseconds."""
        try:
            status = self._path.stat()
        except OSError:  # absent, or not to be read: `list` says which
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _write(self, keys: Sequence[ApiKey]) -> None:
        write_atomic(self._path, json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n")


def _key(record: dict[str, Any]) -> ApiKey:
    """One entry of the file.

    Raises:
        ValueError, TypeError: It is none.
    """
    key = ApiKey(**{**record, "scopes": tuple(record["scopes"])})
    if len(bytes.fromhex(key.sha256)) != hashlib.sha256().digest_size or not set(key.scopes) <= SCOPES.keys():
        raise ValueError("not a key")
    if not all(isinstance(text, str) for text in (key.name, key.created)):
        raise TypeError("not a key")
    return key
