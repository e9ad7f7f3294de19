"""Ollama's API about models: ``/api/tags``, ``/api/show``, ``/api/ps``, ``/api/embed``, ``/api/version``."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from localllm import __version__
from localllm.gguf_header import GGUFHeader, read_gguf_header
from localllm.models.manifest import Manifest
from localllm.models.store import ModelStore
from serve.http.disconnect import unless_disconnected
from serve.http.embeddings import check_dimensions, shortened
from serve.http.errors import HTTPError
from serve.http.json_body import parse_json
from serve.http.ollama_types import EmbedRequest, ShowRequest
from serve.http.wire_types import validate
from serve.registry import Registry, Served
from serve.supervisor import Supervisor

UNSUPPORTED_PATHS = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/embeddings",
    "/api/blobs/{digest}",
)


# What Ollama itself says of a model that stays: 2**63 ns from now.
_FOR_EVER = timedelta(days=106_751)


class OllamaModelRoutes:
    """The routes about models.

    Args:
        supervisor: Gives the engines.
        store: Where models are.
        registry: Tells what names mean.
    """

    def __init__(self, supervisor: Supervisor, store: ModelStore, registry: Registry) -> None:
        self._supervisor = supervisor
        self._store = store
        self._registry = registry

    async def greet(self, _request: Request) -> Response:
        """``GET /`` and ``HEAD /``, by which clients find out that there is a server."""
        return PlainTextResponse("localllm is running")

    async def version(self, _request: Request) -> Response:
        """``GET /api/version``: our own version, not one of Ollama's."""
        return JSONResponse({"version": __version__})

    async def tags(self, _request: Request) -> Response:
        """``GET /api/tags``: what can be served."""
        found = await asyncio.to_thread(self._registry.list)
        return JSONResponse({"models": [_fields(served) for served in found]})

    async def ps(self, _request: Request) -> Response:
        """``GET /api/ps``: the models in memory, and when they leave it if nobody uses them and no other needs it."""
        now = datetime.now(UTC)
        known = {served.name: served for served in await asyncio.to_thread(self._registry.list)}
        loaded = [
            {
                **_fields(known[model.name]),
                "size": model.memory,
                "context_length": model.n_ctx,
                "expires_at": _expiry(now, model.expires),
            }
            for model in self._supervisor.loaded()
            if model.name in known
        ]
        return JSONResponse({"models": loaded})

    async def show(self, request: Request) -> Response:
        """``POST /api/show``: a model's details, template and metadata (without its vocabulary)."""
        body = validate(ShowRequest, parse_json(await request.body()))
        return JSONResponse(await asyncio.to_thread(self._show, body.model))

    async def embed(self, request: Request) -> Response:
        """``POST /api/embed``."""
        body = validate(EmbedRequest, parse_json(await request.body()))
        return JSONResponse(await unless_disconnected(request.receive, self._embed(body)))

    async def unsupported(self, request: Request) -> Response:
        """Every path of Ollama's that changes the store, or that it has replaced itself."""
        path = request.scope["path"]
        hint = "Use /api/embed." if path == "/api/embeddings" else "Use `localllm pull` and `localllm models`."
        raise HTTPError(501, "not_supported", f"{path} is not supported.", hint)

    def _show(self, name: str) -> dict[str, Any]:
        served = self._registry.resolve(name)
        manifest, fields = served.manifest, _fields(served)
        shown = {
            "license": manifest.licence,
            "modified_at": fields["modified_at"],
            "details": fields["details"],
            "template": "",
            "model_info": {},
            "capabilities": ["completion"],
        }
        if manifest.format == "gguf":
            header = read_gguf_header(self._store.paths(manifest)[0])
            shown.update(template=header.chat_template or "", model_info=_model_info(header, manifest))
        return shown

    async def _embed(self, body: EmbedRequest) -> dict[str, Any]:
        began = time.monotonic()
        async with self._supervisor.engine(body.model, body.keep_alive) as (served, engine):
            check_dimensions(body.dimensions, engine.info)
            loaded = time.monotonic()
            embedded = await engine.embed(body.input)
        return {
            "model": served.name,
            "embeddings": shortened(embedded.vectors, body.dimensions),
            "total_duration": int((time.monotonic() - began) * 1e9),
            "load_duration": int((loaded - began) * 1e9),
            "prompt_eval_count": embedded.n_tokens,
        }


def _fields(served: Served) -> dict[str, Any]:
    manifest = served.manifest
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": served.created or "1970-01-01T00:00:00Z",
        "size": served.size,
        "digest": manifest.files[0].sha256 if manifest.files else "",
        "details": {
            "parent_model": _parent(served),
            "format": manifest.format,
            "family": manifest.architecture,
            "families": [manifest.architecture] if manifest.architecture else [],
            "parameter_size": _short(manifest.parameters),
            "quantization_level": manifest.quantization,
        },
    }


def _expiry(now: datetime, seconds: float | None) -> str:
    moment = now + (_FOR_EVER if seconds is None else timedelta(seconds=seconds))
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _parent(served: Served) -> str:
    """What a model was made from: with an adapter, the model itself."""
    if served.adapters:
        return str(served.manifest.model_name)
    return served.manifest.parent.name if served.manifest.parent else ""


def _short(parameters: int) -> str:
    """A number of parameters as Ollama writes it: 134.5M."""
    if parameters >= 10**9:
        return f"{parameters / 10**9:.1f}B"
    return f"{parameters / 10**6:.1f}M" if parameters >= 10**6 else str(parameters)


def _model_info(header: GGUFHeader, manifest: Manifest) -> dict[str, Any]:
    """The metadata but arrays, large texts and the template, which has a field of its own; JSON has no infinity."""
    plain = {
        key: value
        for key, value in header.metadata.items()
        if isinstance(value, str | int | float)
        and not key.startswith("tokenizer.chat_template")
        and not (isinstance(value, float) and not math.isfinite(value))
    }
    return {**plain, "general.parameter_count": manifest.parameters}
