"""``/v1/models``, ``/health``, ``/metrics`` and the app's own routes below ``/internal/``."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from localllm import __version__
from serve.http.disconnect import unless_disconnected
from serve.http.errors import HTTPError
from serve.http.json_body import parse_json
from serve.http.metrics import Metrics
from serve.http.openai_types import LoadRequest
from serve.http.wire_types import validate
from serve.registry import Registry, Served
from serve.supervisor import Supervisor

_ANTHROPIC = "anthropic-version"  # a header that its clients always send


class CatalogueRoutes:
    """The routes that tell what is here.

    Args:
        registry: Tells what is here, and what names mean.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``: what is here, alone and with adapters; for Anthropic's clients in their own shape."""
        found = await asyncio.to_thread(self._registry.list)
        if _ANTHROPIC in request.headers:
            return JSONResponse(page_of([_anthropic_fields(served) for served in found], request.query_params))
        return JSONResponse({"object": "list", "data": [_model_fields(served) for served in found]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/{model}``."""
        served = await asyncio.to_thread(self._registry.resolve, request.path_params["model"])
        return JSONResponse((_anthropic_fields if _ANTHROPIC in request.headers else _model_fields)(served))


class InternalRoutes:
    """Health, metrics, and what only a holder of a key may do.

    Args:
        supervisor: Gives the engines.
        metrics: What was counted.
        stop: Makes the server finish and stop.
    """

    def __init__(self, supervisor: Supervisor, metrics: Metrics, stop: Callable[[], None]) -> None:
        self._supervisor = supervisor
        self._metrics = metrics
        self._stop = stop

    async def health(self, request: Request) -> Response:
        """``GET /health``; without a key for ``models`` it says nothing but that the server is there."""
        holder = request.scope["state"]["holder"]
        if holder is None or not holder.allows("models"):
            return JSONResponse({"status": "ok"})
        models = [vars(model) for model in self._supervisor.loaded()]
        return JSONResponse({"status": "ok", "version": __version__, "models": models})

    async def metrics(self, _request: Request) -> Response:
        """``GET /metrics``, for Prometheus."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def load(self, request: Request) -> Response:
        """``POST /internal/load``: load a model now."""
        body = validate(LoadRequest, parse_json(await request.body()))
        return JSONResponse(await unless_disconnected(request.receive, self._load(body.model)))

    async def shutdown(self, _request: Request) -> Response:
        """``POST /internal/shutdown``: finish the answers under way, then stop."""
        self._stop()
        return JSONResponse({"status": "stopping"})

    async def _load(self, name: str) -> dict[str, Any]:
        async with self._supervisor.engine(name) as (served, engine):
            return {"model": served.name, "n_ctx": engine.info.n_ctx}


def page_of(models: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of Anthropic's list.

    Args:
        models: All of them.
        query: ``limit`` (20 without it), and one of ``after_id`` and ``before_id``.

    Raises:
        HTTPError: 400, naming what is wrong.
    """
    limit, ids = query.get("limit", "20"), [model["id"] for model in models]
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= 1000:
        raise HTTPError(400, "invalid_value", "`limit` is a number from 1 to 1000.", param="limit")
    start, end = 0, len(ids)
    for name in ("after_id", "before_id"):
        if name not in query:
            continue
        if query[name] not in ids:
            raise HTTPError(400, "invalid_value", f"`{name}` names no model of the list.", param=name)
        place = ids.index(query[name])
        start, end = (place + 1, end) if name == "after_id" else (start, place)
    # Backwards, the page ends where it is asked to.
    page = models[start:end][-int(limit) :] if "before_id" in query else models[start:end][: int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"data": list(page), "has_more": len(page) < end - start, **ends}


def _anthropic_fields(served: Served) -> dict[str, Any]:
    created = datetime.fromtimestamp(_unix_seconds(served.created), UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": served.name,
        "display_name": served.name,
        "created_at": created,
        "lifecycle": "active",
    }


def _model_fields(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": _unix_seconds(served.created),
        "owned_by": "localllm",
    }


def _unix_seconds(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0  # a manifest of an unknown age
