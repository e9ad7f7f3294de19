"""Connections with bounds: a peer that is slow, silent or does not read loses its connection, not the server's memory.

Uvicorn by itself waits for ever for the head of a request, for the rest of a body that was refused, and for a reader
that has stopped reading.
"""

import asyncio
import json
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from serve.http.dialects import error_body
from serve.http.errors import HTTPError, describe
from serve.http.guards import BODY_SECONDS


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take.

    Attributes:
        head_seconds: For the head of a request, from the connection or its first byte; and for the rest of a body whose
            request has been answered already.
        idle_seconds: Between an answer and the first byte of the next request. Clients keep connections for a minute
            and would meet a reset where the server closes first.
        body_seconds: For the body of a request.
        write_seconds: In each such period a reader that is behind must catch up, or take ``write_bytes``.
        write_bytes: See ``write_seconds``.
        max_connections: For one more, the connection that has been idle for longest goes; where none is, it is refused.
    """

    head_seconds: float = 10.0
    idle_seconds: float = 90.0
    body_seconds: float = BODY_SECONDS
    write_seconds: float = 30.0
    write_bytes: int = 32 * 1024
    max_connections: int = 128


class BoundedConnection(H11Protocol):
    """One connection. Made by uvicorn; :func:`bounded_by` gives it its limits.

    Nothing is kept for a reader that is behind but what one step of its answer has written: everything else waits, and
    is cancelled together with its request when ``write_seconds`` are over.
    """

    _limits = ConnectionLimits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience: asyncio.TimerHandle | None = None  # with a peer that has something to finish
        self._idle_since: float | None = None  # between an answer and the next request: when that began
        self._writing: asyncio.TimerHandle | None = None  # runs while the peer is behind with reading
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Take the connection, or refuse it where there are too many."""
        super().connection_made(transport)
        # The kernel's buffers are enough: with any of our own, a stalled reader is noticed later.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self._limits.max_connections and not self._close_an_idle_one():
            self._refuse(HTTPError(503, "too_many_connections", "Too many connections are open.", "Close some."))
        else:
            self._wait_for_peer(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take more of a request; what comes after a refusal is dropped."""
        if self.transport.is_closing():
            return
        if self._idle_since is not None:  # the next request begins
            self._stop_waiting()
        super().data_received(data)
        if not self._is_peers_turn:
            self._stop_waiting()
        elif self._patience is None:
            self._wait_for_peer(self._limits.head_seconds)

    def on_response_complete(self) -> None:
        """The answer is out: the peer has so long for its next request, or for the rest of this one's body."""
        self._stop_waiting()
        super().on_response_complete()
        if self.transport.is_closing() or not self._is_peers_turn:
            return
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._wait_for_peer(self._limits.idle_seconds)
            self._idle_since = self.loop.time()
        else:
            self._wait_for_peer(self._limits.head_seconds)

    def pause_writing(self) -> None:
        """The peer is behind."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self._limits.write_seconds, self._check_reader)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    @property
    def _is_peers_turn(self) -> bool:
        """No request is being answered, so it is the peer's turn."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_peer(self, seconds: float) -> None:
        self._patience = self.loop.call_later(seconds, self._give_up)

    def _close_an_idle_one(self) -> bool:
        """Make room for a connection by closing the one that has been idle for longest; False where none is."""
        others = [other for other in self.connections if isinstance(other, BoundedConnection)]
        idle = [(other._idle_since, other) for other in others if other._idle_since is not None]
        if not idle:
            return False
        min(idle, key=itemgetter(0))[1].transport.close()
        return True

    def _stop_waiting(self) -> None:
        self._idle_since = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        """The head of a request, or the rest of a refused body, has taken too long."""
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(HTTPError(408, "request_timeout", "The request took too long to arrive."))
        else:
            self.transport.close()

    def _check_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if self._unread - unread < self._limits.write_bytes:
            self.transport.abort()  # the answer's request is cancelled by this
            return
        self._unread = unread
        self._writing = self.loop.call_later(self._limits.write_seconds, self._check_reader)

    def _refuse(self, error: HTTPError) -> None:
        """Answer without a request, in OpenAI's shape, and close."""
        reply = describe(error)
        body = json.dumps(error_body("openai", reply)).encode()
        headers = {**reply.headers, "content-type": "application/json", "content-length": str(len(body))}
        head = h11.Response(status_code=reply.status, headers=[*headers.items(), ("connection", "close")])
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def bounded_by(limits: ConnectionLimits) -> type[BoundedConnection]:
    """The protocol class for uvicorn, which makes its objects itself."""

    class Bounded(BoundedConnection):
        _limits = limits

    return Bounded
