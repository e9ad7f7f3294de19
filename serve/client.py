"""The app's side of the local server: chat, models, health, over HTTP on loopback."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localllm.errors import ServerError
from serve.events import StreamDone, StreamEvent, TextDelta
from serve.http.errors import rebuild

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 5.0
_CUT = "The server ended in the middle of the answer."
# An answer of the server that no honest one gives; bounds what a broken peer can make us keep.
_MAX_LINE = 16 * 1024 * 1024


@dataclass(frozen=True)
class ChatOptions:
    """How an answer is to be made; None takes the server's default.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: Longest answer in tokens; None is bounded by the context.
        seed: 0 to 2**32-2; None draws one.
        stop: The answer ends before the first of these.
        top_p, top_k, min_p, repeat_penalty: As in :class:`serve.engine.types.SamplingParams`.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def as_fields(self) -> dict[str, Any]:
        """The fields of the request; what is None or empty is left out."""
        given = {name: value for name, value in vars(self).items() if value is not None and name != "stop"}
        return {**given, "stop": list(self.stop)} if self.stop else given


@dataclass(frozen=True)
class Address:
    """Where a server is, and the token that opens it."""

    base_url: str
    token: str


class ServeClient:
    """A client of one local server.

    Args:
        base_url: ``http://127.0.0.1:PORT``, without ``/v1``.
        token: Sent as the bearer token; empty sends none.
        transport: Replaces the network in tests.
        renew: Finds the server again (or starts one) after it has gone, as a server without work does by itself. A
            request that could not even be connected is then tried once more.
    """

    def __init__(
        self,
        base_url: str,
        token: str = "",
        *,
        transport: "httpx2.AsyncBaseTransport | None" = None,
        renew: Callable[[], Awaitable[Address]] | None = None,
    ) -> None:
        # Deferred: httpx2 takes about 100 ms to import, and command modules import this one.
        import httpx2

        self._renew = renew
        self._http = httpx2.AsyncClient(
            transport=transport,
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,  # a proxy of the environment must never see what goes to loopback
        )
        self.address = Address(base_url.rstrip("/"), token)

    async def health(self) -> dict[str, Any]:
        """``{"status", "version", "models", …}`` of the server.

        Raises:
            ServerError: The server cannot be reached.
        """
        return await self._json("GET", "/health")

    async def models(self) -> list[str]:
        """Names of the models that the server can answer with.

        Raises:
            ServerError: The server cannot be reached.
        """
        return [model["id"] for model in (await self._json("GET", "/v1/models"))["data"]]

    async def load(self, model: str) -> None:
        """Load a model now, so that the first answer does not wait for it.

        Raises:
            ModelNotFoundError, MemoryFitError, InvalidModelError, EngineLoadError: As the server found.
            ServerError: The server cannot be reached.
        """
        await self._json("POST", "/internal/load", {"model": model})

    async def shutdown(self) -> None:
        """Ask the server to stop; it finishes the answers under way first."""
        await self._json("POST", "/internal/shutdown", {})

    async def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: ChatOptions = ChatOptions()
    ) -> AsyncIterator[StreamEvent]:
        """Stream one answer: any number of ``TextDelta``, then ``StreamDone``. Closing the iterator cancels it.

        Args:
            model: Its name in the store.
            messages: ``{"role", "content"}`` each.
            options: How the answer is to be made.

        Raises:
            ContextLengthError, RequestError: The server refuses the request.
            ModelNotFoundError, MemoryFitError, InvalidModelError: The model cannot be loaded.
            EngineLoadError, EngineDiedError, EngineBusyError: The model's process failed, or has too much to do.
            ServerError: The server is gone.
        """
        body = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **options.as_fields(),
        }
        reading = _Reading(model)
        async with self._open("POST", "/v1/chat/completions", body) as response:
            async for line in _lines(response):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    yield reading.done()
                    return
                text = reading.chunk(data)
                if text:
                    yield TextDelta(text)
        raise ServerError(_CUT, "Ask again; the server starts anew.")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        async with self._open(method, path, body) as response:
            answer = _decode(await response.aread())
        if not isinstance(answer, dict):
            raise ServerError("The server answered with something that is not JSON.")
        return answer

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> "AsyncIterator[httpx2.Response]":
        """Send a request; the response inside has status 200 and its body not read yet.

        Every failure of the network inside becomes a :class:`ServerError`.
        """
        # Deferred: see __init__; the module is there already.
        import httpx2

        response: httpx2.Response | None = None
        try:
            response = await self._send(method, path, body)
            if response.status_code != 200:
                raise rebuild(response.status_code, _decode(await response.aread()))
            yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ServerError(
                f"The local server at {self.address.base_url} cannot be reached.", "It may have stopped; try again."
            ) from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ServerError(_CUT, "Ask again; logs/server.log may say why.") from error
        finally:
            if response is not None:
                await response.aclose()

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> "httpx2.Response":
        # Deferred: see __init__; the module is there already.
        import httpx2

        try:
            response = await self._send_once(method, path, body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            if self._renew is None:
                raise
        else:
            # Another server may have taken the old one's port: its token is not ours.
            if response.status_code != 401 or self._renew is None:
                return response
            await response.aclose()
        self.address = await self._renew()
        return await self._send_once(method, path, body)

    async def _send_once(self, method: str, path: str, body: Mapping[str, Any] | None) -> "httpx2.Response":
        headers = {"authorization": f"Bearer {self.address.token}"} if self.address.token else {}
        request = self._http.build_request(method, self.address.base_url + path, json=body, headers=headers)
        return await self._http.send(request, stream=True)


class _Reading:
    """What has been read of a streamed chat so far: everything but the text."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.reason = ""
        self.usage: Mapping[str, Any] = {}
        self.timings: Mapping[str, Any] = {}

    def chunk(self, data: bytes) -> str:
        """Take in one chunk; return its text.

        Raises:
            LocalLLMError: The chunk is an error event, or no chunk at all.
        """
        chunk = _decode(data)
        if not isinstance(chunk, dict):
            raise ServerError("The server sent something that is no part of an answer.")
        if "error" in chunk:
            raise rebuild(0, chunk)
        self.model = chunk.get("model") or self.model
        self.usage = chunk.get("usage") or self.usage
        self.timings = chunk.get("timings") or self.timings
        text = ""
        for choice in chunk.get("choices", ()):
            self.reason = choice.get("finish_reason") or self.reason
            text += choice.get("delta", {}).get("content") or ""
        return text

    def done(self) -> StreamDone:
        details = self.usage.get("prompt_tokens_details") or {}
        return StreamDone(
            reason=self.reason,
            n_prompt=self.usage.get("prompt_tokens", 0),
            n_cached=details.get("cached_tokens", 0),
            n_completion=self.usage.get("completion_tokens", 0),
            prompt_seconds=self.timings.get("prompt_seconds", 0.0),
            decode_seconds=self.timings.get("decode_seconds", 0.0),
            n_ctx=self.timings.get("n_ctx", 0),
            model=self.model,
        )


async def _lines(response: "httpx2.Response") -> AsyncIterator[bytes]:
    r"""Whole lines of a body. Split at ``\n`` only: text may hold other characters that ``splitlines`` breaks at."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > _MAX_LINE:
            raise ServerError("The server sent a line without an end.")


def _decode(raw: bytes) -> object:
    """The JSON value in ``raw``; None when it is none."""
    try:
        return json.loads(raw)
    except ValueError:
        return None
