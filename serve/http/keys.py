"""The keys that open a server: its own token, the one from the command line, and those of the home's ``keys.json``."""

import hashlib
import hmac
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers

from localllm.api_keys import ApiKey, KeyStore, digest
from localllm.errors import SettingsError
from serve.http.scopes import ANY_KEY

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who sent a right key.

    Attributes:
        client: A name for the holder, the same in every run, from which the key cannot be had.
        key: What is kept of a named key; None for the token and for ``--api-key``, which may do everything.
    """

    client: str
    key: ApiKey | None = None

    def allows(self, scope: str) -> bool:
        """Whether the key may be used for ``scope``, as :func:`serve.http.scopes.scope_of` tells it."""
        return self.key is None or scope == ANY_KEY or self.key.allows(scope)


class Keys:
    """All keys, compared as digests and in constant time.

    Args:
        keys: Those that may do everything; empty ones are ignored.
        token: The server's own, which may do everything too.
        store: The named ones. Its file is read again whenever it changes, so a removed key is refused at once.

    Raises:
        SettingsError: The file of the named keys is damaged.
    """

    def __init__(self, keys: Collection[str], store: KeyStore | None = None, *, token: str = "") -> None:
        self._digests = [digest(key) for key in keys if key]
        self._token = digest(token) if token else None
        self._store = store
        self._stamp = store.stamp() if store else ()
        self._named = self._digested(store.list() if store else [])

    @property
    def any_named(self) -> bool:
        """Whether there are named keys now."""
        self._refresh()
        return bool(self._named)

    def accept(self, headers: Headers) -> Holder | None:
        """Whose key a request carries in its ``Authorization`` or ``x-api-key`` header; None without a right one."""
        self._refresh()
        for given in _given(headers):
            wanted = digest(given)
            # Every key is compared, so the time tells nothing about which one is near.
            is_token = self._token is not None and hmac.compare_digest(wanted, self._token)
            own = [hmac.compare_digest(wanted, known) for known in self._digests]
            named = [key for known, key in self._named if hmac.compare_digest(wanted, known)]
            if is_token:
                # The same name in every run, though the token is new in each: what is kept on the disk is found again.
                return Holder("token")
            if any(own) or named:
                client = hashlib.blake2b(wanted, digest_size=12, person=b"client").hexdigest()
                return Holder(client, None if any(own) else named[0])
        return None

    def _refresh(self) -> None:
        if self._store is None or (stamp := self._store.stamp()) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._named = self._digested(self._store.list())
        except SettingsError as error:
            _log.error("%s", error)  # no traceback: a person can cause it; until it is mended no named key is accepted
            self._named = []

    @staticmethod
    def _digested(keys: list[ApiKey]) -> list[tuple[bytes, ApiKey]]:
        return [(bytes.fromhex(key.sha256), key) for key in keys]


def _given(headers: Headers) -> Iterator[str]:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    for given in (bearer if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")):
        if given.strip():
            yield given.strip()
