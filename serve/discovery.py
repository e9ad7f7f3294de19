"""Finding the server of a home, or starting one.

A server holds ``locks/server.lock`` as long as it lives and writes ``server.json`` (address, token). A lock that is
free means that the file is stale, whatever it says: a process id alone could be another program's by now.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from localllm import __version__
from localllm.errors import LocalLLMError, ServerError
from localllm.files import write_atomic
from localllm.paths import FILE_MODE, Home
from localllm.sanitize import one_line
from localllm.settings import Settings
from serve.client import Address, ServeClient

START_SECONDS = 30.0
STOP_SECONDS = 15.0
HEALTH_SECONDS = 5.0
_POLL_SECONDS = 0.05
# Exit code of a server that found another one running: whoever started it uses that one.
ALREADY_RUNNING = 3
# What the server needs to know of the settings; the others (the system prompt) are nobody's business in a process list.
_PASSED_ON = frozenset({"ctx", "threads", "gpu_layers", "kv_type", "guess", "memory_gb", "keep_alive", "log_level"})


class ServerRunningError(ServerError):
    """A server of this home runs already."""


@dataclass(frozen=True)
class ServerRecord:
    """What ``server.json`` says.

    Attributes:
        pid: The server's process id.
        host: Address to connect to.
        port: Its port.
        token: The key that opens it to this person's programs.
        version: The program's version.
        managed: Started by the app, and ends by itself; False for ``localllm serve``.
    """

    pid: int
    host: str
    port: int
    token: str
    version: str
    managed: bool

    @property
    def base_url(self) -> str:
        """``http://HOST:PORT``."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def address(self) -> Address:
        """What a client needs."""
        return Address(self.base_url, self.token)

    def write(self, home: Home) -> None:
        """Write ``server.json``, readable for its owner only."""
        write_atomic(home.server_file, json.dumps(asdict(self)) + "\n")


def server_lock(home: Home) -> FileLock:
    """The lock that a server holds as long as it lives."""
    return FileLock(home.locks / "server.lock", mode=FILE_MODE)


def running_server(home: Home) -> ServerRecord | None:
    """The server that runs for this home; None when none does, or when it is still starting."""
    if _lock_is_free(home):
        return None
    try:
        record = ServerRecord(**json.loads(home.server_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    typed = all(isinstance(getattr(record, name), kind) for name, kind in ServerRecord.__annotations__.items())
    return record if typed else None


async def connect(home: Home, settings: Settings, *, on_status: Callable[[str], None] | None = None) -> ServeClient:
    """A client of this home's server, which is started if none runs.

    The client finds or starts the server again when it has gone in the meantime.

    Args:
        home: Whose server.
        settings: Handed to a server that is started.
        on_status: Is told what takes time.

    Raises:
        ServerError: The server cannot be started, or the one that runs is of another version.
    """
    find = partial(find_or_start, home, settings, on_status)
    address = await find()
    return ServeClient(address.base_url, address.token, renew=find)


async def find_or_start(home: Home, settings: Settings, on_status: Callable[[str], None] | None = None) -> Address:
    """As :func:`connect`, but only the address. Two callers at once end up with one server."""
    home.ensure()
    deadline = time.monotonic() + START_SECONDS
    child: _Child | None = None
    while time.monotonic() < deadline:
        record = running_server(home)
        if record is not None and record.version != __version__:
            await stop_managed(home, record)
        elif record is not None and await _is_healthy(record):
            return record.address
        if child is None and _lock_is_free(home):
            if on_status is not None:
                on_status("Starting the server…")
            child = _Child(home, settings)
        elif child is not None and (code := child.exit_code()) is not None:
            if code != ALREADY_RUNNING:
                raise ServerError(f"The server could not be started: {child.last_words()}", f"See {child.log_path}.")
            child = None
        await asyncio.sleep(_POLL_SECONDS)
    raise ServerError(f"The server did not answer within {START_SECONDS:.0f} s.", f"See {home.logs / 'server.log'}.")


async def stop_managed(home: Home, record: ServerRecord) -> None:
    """Ask the app's own server to stop, and wait until it has.

    Raises:
        ServerRunningError: It is a person's server, which is not ours to stop, or it does not stop.
    """
    if not record.managed:
        raise ServerRunningError(
            f"A server (version {record.version}) runs at {record.base_url} already.",
            "Stop it with Ctrl-C in its terminal, or use it as it is.",
        )
    client = ServeClient(record.base_url, record.token)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            with suppress(ServerError):  # it may be going already: the lock will tell
                await client.shutdown()
            while not _gone(home, record):  # noqa: ASYNC110  another process's lock sets no event here
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise ServerRunningError(
            f"The server at {record.base_url} (process {record.pid}) does not stop.",
            f"End it with `kill {record.pid}`.",
        ) from None
    finally:
        await client.aclose()


def _gone(home: Home, record: ServerRecord) -> bool:
    """Whether this very server has ended; another one may have its lock already."""
    now = running_server(home)
    return now != record and (now is not None or _lock_is_free(home))


def _lock_is_free(home: Home) -> bool:
    lock = server_lock(home)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


async def _is_healthy(record: ServerRecord) -> bool:
    client = ServeClient(record.base_url, record.token)
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            # Only a server that knows our token tells its version.
            return (await client.health()).get("version") == record.version
    except (TimeoutError, LocalLLMError):
        return False
    finally:
        await client.aclose()


class _Child:
    """A server that was started, detached from this process: it goes on when this one ends."""

    def __init__(self, home: Home, settings: Settings) -> None:
        self.log_path = home.logs / "server.log"
        passed = settings.model_dump_json(include=set(_PASSED_ON))
        descriptor = os.open(self.log_path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, FILE_MODE)
        try:
            self._log_start = os.fstat(descriptor).st_size
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.http.main", "--home", str(home.root), "--settings", passed],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        # Somebody must wait for it, or it stays as a zombie while this process lives.
        threading.Thread(target=self._process.wait, daemon=True, name="server-reaper").start()

    def exit_code(self) -> int | None:
        """Its exit code once it has ended."""
        return self._process.poll()

    def last_words(self) -> str:
        """The last line that it wrote."""
        return _last_line(self.log_path, self._log_start) or f"it ended with code {self.exit_code()} and no message."


def _last_line(path: Path, start: int) -> str:
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        # The log is rotated when it is large: it is then shorter than it was.
        handle.seek(start if start <= size else 0)
        lines = handle.read().decode("utf-8", "replace").split("\n")
    return next((one_line(line, 300) for line in reversed(lines) if line.strip()), "")
