"""One running server: its socket, its lock and record, its web application, its end."""

import asyncio
import errno
import ipaddress
import logging
import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from filelock import Timeout
from starlette.types import ASGIApp

from localllm import __version__
from localllm.api_keys import KeyStore
from localllm.errors import ServerError, SettingsError
from localllm.memory import machine_memory
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.settings import Settings
from serve.discovery import ServerRecord, ServerRunningError, server_lock
from serve.http.activity import Activity
from serve.http.app import Access, create_app
from serve.http.connections import ConnectionLimits, bounded_by
from serve.http.guards import host_in_header, is_loopback
from serve.http.keys import Keys
from serve.http.metered import MeteredSupervisor
from serve.http.metrics import Metrics
from serve.supervisor import StartEngine, Supervisor

DRAIN_SECONDS = 5
# Long enough for somebody who only looks whether the lock is free.
_LOCK_SECONDS = 0.3
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  the names are compared, not bound
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How a server is to run.

    Attributes:
        host: Name or address to bind.
        port: 0 takes a free one.
        managed: The app's own server: always asks for its token, and ends by itself when it has nothing to do.
        api_key: A key besides the token and the named ones; where there is any, every request must carry one of them.
        allow_hosts: Host headers to allow besides the loopback names.
        limits: Of its connections.
    """

    host: str = "127.0.0.1"
    port: int = 0
    managed: bool = True
    api_key: str = ""
    allow_hosts: tuple[str, ...] = ()
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        record: Its address and token.
        supervisor: Its models.
        activity: Its requests.
    """

    record: ServerRecord
    supervisor: Supervisor
    activity: Activity


async def run_server(
    home: Home,
    settings: Settings,
    options: ServerOptions,
    start_engine: StartEngine,
    *,
    on_ready: Callable[[Running], Awaitable[None]] | None = None,
    on_stopping: Callable[[int], None] | None = None,
) -> None:
    """Serve until a signal, ``/internal/shutdown``, or (managed) until there was nothing to do for a while.

    Args:
        home: Whose models; holds the lock and the record.
        settings: For the models; ``keep_alive`` for a managed server.
        options: How to run.
        start_engine: Starts a model's process.
        on_ready: Runs once requests are answered; what it raises stops the server and is raised here.
        on_stopping: Is told the number of requests that are still under way when the server begins to stop.

    Raises:
        SettingsError: A bind that others can reach, without a key; a host that is none; damaged keys.
        ServerRunningError: A server of this home runs already.
        ServerError: The address cannot be bound.
    """
    token = secrets.token_urlsafe(32)
    keys = Keys([options.api_key], KeyStore(home), token=token)
    keyed = bool(options.api_key) or keys.any_named
    with _only_server(home), _bound_socket(options, keyed=keyed) as bound:
        host, port = bound.getsockname()[:2]
        record = ServerRecord(os.getpid(), _ANY_ADDRESS.get(host, host), port, token, __version__, options.managed)
        store, activity = ModelStore(home), Activity()
        metrics = Metrics()
        supervisor = MeteredSupervisor(
            metrics, store, settings, lambda: machine_memory(settings.memory_gb), start_engine, logs=home.logs
        )
        stopper = _Stopper(activity, on_stopping)
        stopper.server = _uvicorn(
            create_app(
                supervisor, store, _access(options, keys, keyed=keyed), activity, metrics, stopper.stop_on_request
            ),
            options.limits,
        )
        record.write(home)
        _log.info("serving at %s, process %d, version %s", record.base_url, record.pid, __version__)
        helpers: list[asyncio.Task[None]] = []
        if options.managed and settings.keep_alive:
            helpers.append(asyncio.create_task(_stop_when_idle(activity, settings.keep_alive, stopper)))
        helpers.append(asyncio.create_task(_unload_idle(supervisor, settings.keep_alive or math.inf)))
        if on_ready is not None:
            helpers.append(asyncio.create_task(_until_ready(on_ready(Running(record, supervisor, activity)), stopper)))
        try:
            with stopper.signals():
                await stopper.server.serve(sockets=[bound])
        finally:
            for helper in helpers:
                helper.cancel()
            outcomes = await asyncio.gather(*helpers, return_exceptions=True)
            home.server_file.unlink(missing_ok=True)
            await supervisor.close()
            _log.info("stopped")
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


def _access(options: ServerOptions, keys: Keys, *, keyed: bool) -> Access:
    return Access(
        keys=keys,
        key_required=options.managed or keyed,
        body_seconds=options.limits.body_seconds,
        hosts={host_in_header(name) for name in (options.host, *options.allow_hosts)},
    )


def _uvicorn(app: ASGIApp, limits: ConnectionLimits) -> "_Uvicorn":
    return _Uvicorn(
        uvicorn.Config(
            app,
            http=bounded_by(limits),
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            timeout_keep_alive=math.ceil(limits.idle_seconds),
        )
    )


class _Uvicorn(uvicorn.Server):
    """Uvicorn that leaves signals to us: its own handlers raise the signal once more after a graceful stop."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        return nullcontext()


class _Stopper:
    """Begins the end of a server, once."""

    def __init__(self, activity: Activity, on_stopping: Callable[[int], None] | None) -> None:
        self.server: _Uvicorn | None = None
        self._activity = activity
        self._on_stopping = on_stopping

    def stop(self) -> None:
        """Stop taking requests, finish the ones under way; a second call does not wait for them."""
        self._stop(self._activity.requests)

    def stop_on_request(self) -> None:
        """As :meth:`stop`, asked by a request, which is not one to wait for."""
        self._stop(self._activity.requests - 1)

    def _stop(self, n_requests: int) -> None:
        server = self.server
        assert server is not None, "set before anything can ask to stop"
        if server.should_exit:
            server.force_exit = True
            return
        server.should_exit = True
        if self._on_stopping is not None:
            self._on_stopping(n_requests)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM stop the server gracefully. In a thread of a test there are no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


async def _stop_when_idle(activity: Activity, keep_alive: float, stopper: _Stopper) -> None:
    while (left := keep_alive - activity.idle_seconds()) > 0:  # noqa: ASYNC110  time passes without events
        await asyncio.sleep(min(left, 1.0))
    _log.info("nothing to do for %.0f s", keep_alive)
    stopper.stop()


async def _unload_idle(supervisor: Supervisor, keep_alive: float) -> None:
    while True:
        await asyncio.sleep(1.0)  # a request may ask for seconds
        await supervisor.unload_idle(keep_alive)


async def _until_ready(ready: Awaitable[None], stopper: _Stopper) -> None:
    try:
        await ready
    except Exception:
        stopper.stop()
        raise  # run_server raises it once the server has stopped


@contextmanager
def _only_server(home: Home) -> Iterator[None]:
    """Hold the lock of this home's server; a record from before is stale then, and is removed."""
    lock = server_lock(home)
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise ServerRunningError("A server of this home runs already.", f"Its home is {home.root}.") from None
    try:
        home.server_file.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextmanager
def _bound_socket(options: ServerOptions, *, keyed: bool = False) -> Iterator[socket.socket]:
    """The listening socket; connections wait in it until uvicorn takes them.

    Args:
        options: Where to bind.
        keyed: There is a key, so others may reach it.

    Raises:
        SettingsError: Others could reach it, and there is no key.
        ServerError: The address cannot be bound.
    """
    where = f"{host_in_header(options.host)}:{options.port}"
    family, address = _resolve(options.host, options.port)
    ip = str(address[0])
    if not is_loopback(ip) and not keyed:
        reach = "every network" if ipaddress.ip_address(ip.partition("%")[0]).is_unspecified else "a network"
        raise SettingsError(
            f"Binding {options.host} opens the server to {reach}, and there is no key.",
            "Make one with `localllm keys add NAME`, set LOCALLLM_API_KEY, or bind 127.0.0.1.",
        )
    # The protocol is named, because asyncio turns Nagle's algorithm off only for sockets that say they are TCP; it
    # would hold tokens back for 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        try:
            if os.name == "posix":
                # A port that a server of a minute ago used is free again at once.
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServerError(
                    f"Port {options.port} on {options.host} is in use.",
                    "Choose another with --port; --port 0 finds one.",
                ) from error
            raise ServerError(
                f"{where} cannot be bound: {error.strerror}.", "Choose another --host or --port."
            ) from error
        yield bound


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The first address of ``host``; one that is an address already is looked up nowhere."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise ServerError(f"The host {host!r} has no address here.", "Use 127.0.0.1.") from error
        return family, address
    return (socket.AF_INET if version == 4 else socket.AF_INET6), (host, port)
