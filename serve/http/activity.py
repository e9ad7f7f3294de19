"""How long the server has had nothing to do."""

import time

from starlette.types import ASGIApp, Receive, Scope, Send


class Activity:
    """Requests under way, streams included, and when the last one ended."""

    def __init__(self) -> None:
        self.requests = 0
        self._last = time.monotonic()

    def idle_seconds(self) -> float:
        """Seconds since the last request ended; 0 while one is under way."""
        return 0.0 if self.requests else time.monotonic() - self._last

    def begin(self) -> None:
        """A request has come."""
        self.requests += 1

    def end(self) -> None:
        """A request has been answered."""
        self.requests -= 1
        self._last = time.monotonic()


class ActivityMeter:
    """ASGI middleware that keeps an :class:`Activity`; what the guards refuse never reaches it."""

    def __init__(self, app: ASGIApp, activity: Activity) -> None:
        self._app = app
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and count."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._activity.begin()
        try:
            return await self._app(scope, receive, send)
        finally:
            self._activity.end()
