"""What a request must pass before a route sees it, as plain ASGI middleware.

From the outside in: the Host allowlist (against DNS rebinding), the Origin check (against web pages), the key, then the
content type and the size of the body. No CORS header is ever sent, so no web page can read an answer.
"""

import asyncio
import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localllm.errors import LocalLLMError, SettingsError
from serve.http.errors import HTTPError
from serve.http.keys import Keys
from serve.http.replies import error_response
from serve.http.scopes import scope_of

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
MAX_BODY = 8 * 1024 * 1024
BODY_SECONDS = 60.0
_HOST = re.compile(r"(\[[0-9a-f:.%]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.ASCII)
_OPEN_PATH = "/health"
_INTERNAL = "/internal/"


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address without brackets, means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_in_header(host: str) -> str:
    """``host`` as a Host header spells it, without the port: IPv6 in brackets, lower case.

    Raises:
        SettingsError: It is no host's name and no address.
    """
    spelled = f"[{host}]".lower() if ":" in host else host.lower()
    found = _HOST.fullmatch(spelled)
    if found is None or found[1] != spelled:
        raise SettingsError(f"{host!r} is not the name or address of a host.", "Give it without http:// and port.")
    return spelled


class HostGuard:
    """Refuses requests for other hosts, and requests from web pages of other hosts.

    Args:
        app: The app behind it.
        hosts: Names allowed besides the loopback ones, as a Host header spells them, without a port.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 403."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not self._host_allowed(headers.getlist("host")):
                error = HTTPError(
                    403, "forbidden_host", "This Host header is not allowed.", "Use 127.0.0.1, or --allow-host.", "Host"
                )
                return await error_response(error, scope["path"])(scope, receive, send)
            if not all(_is_loopback_origin(origin) for origin in headers.getlist("origin")):
                error = HTTPError(403, "forbidden_origin", "Web pages of other sites may not use this server.")
                return await error_response(error, scope["path"])(scope, receive, send)
        return await self._app(scope, receive, send)

    def _host_allowed(self, given: list[str]) -> bool:
        found = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        return found is not None and found[1] in self._hosts


def _is_loopback_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.scheme in {"http", "https"} and is_loopback(parts.hostname or "")
    except ValueError:
        return False


class KeyGuard:
    """Asks for a key. ``/health`` passes without one, ``/internal/…`` never does.

    Sets ``scope["state"]["holder"]``, the :class:`serve.http.keys.Holder` of a right key or None, and
    ``scope["state"]["client"]``: see :func:`client_of`.

    Args:
        app: The app behind it.
        keys: What opens the server.
        required: False leaves everything but ``/internal/…`` open, as long as there are no named keys; once there was
            one, a key is asked for until the server ends.
    """

    def __init__(self, app: ASGIApp, keys: Keys, required: bool) -> None:
        self._app = app
        self._keys = keys
        self._required = required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401 or 403."""
        if scope["type"] == "http":
            path = scope["path"]
            holder = self._keys.accept(Headers(scope=scope))
            # A copy, because the state of the lifespan is shared by all requests.
            scope["state"] = {**scope.get("state", {}), "holder": holder, "client": holder.client if holder else ""}
            self._required = self._required or self._keys.any_named
            needed = path != _OPEN_PATH and (self._required or path.startswith(_INTERNAL))
            if needed and holder is None:
                error = HTTPError(
                    401,
                    "invalid_api_key",
                    "A valid key is needed.",
                    "Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                )
                return await error_response(error, path)(scope, receive, send)
            wanted = scope_of(path)
            if holder is not None and not holder.allows(wanted):
                error = HTTPError(
                    403,
                    "insufficient_scope",
                    f"This key may not be used for that: it lacks the scope `{wanted}`.",
                    f"Make one with `localllm keys add NAME --scope {wanted}`.",
                )
                return await error_response(error, path)(scope, receive, send)
        return await self._app(scope, receive, send)


def client_of(request: HTTPConnection) -> str:
    """Whose request it is: a name for the holder of its key, empty without a right key.

    Cached prefixes are shared under this name only, so that nobody can learn from the speed of an answer what others
    have asked.
    """
    return str(request.scope["state"]["client"])


class BodyGuard:
    """Reads the body of a POST within bounds and hands it on in one piece.

    Args:
        app: The app behind it.
        max_body: Bytes at most.
        seconds: Seconds for it to arrive.
    """

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._seconds = seconds
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 408, 413 or 415."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        try:
            body = await self._read(Headers(scope=scope), receive)
        except LocalLLMError as error:
            return await error_response(error, scope["path"])(scope, receive, send)
        if body is None:
            return None
        waiting = [body]

        async def replay() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()

        return await self._app(scope, replay, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None when the client went away before it was whole."""
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise HTTPError(
                415, "unsupported_media_type", "The body must be JSON.", "Send `Content-Type: application/json`."
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body:
            raise self._too_large()
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > self._max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            raise HTTPError(408, "request_timeout", "The body took too long to arrive.") from None

    def _too_large(self) -> HTTPError:
        limit = f"{self._max_body / 2**20:g} MiB"
        return HTTPError(413, "request_too_large", f"The body is larger than {limit}.", "Send less text at once.")
