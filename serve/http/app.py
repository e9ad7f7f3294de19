"""The server's web application: its guards and its table of routes."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from localllm.adapters import AdapterStore
from localllm.errors import LocalLLMError
from localllm.models.store import ModelStore
from serve.http.activity import Activity, ActivityMeter
from serve.http.anthropic import AnthropicRoutes
from serve.http.catalogue import CatalogueRoutes, InternalRoutes
from serve.http.disconnect import ClientGoneError
from serve.http.docs_page import DocsRoutes
from serve.http.embeddings import EmbeddingsRoutes
from serve.http.endpoints import AllRoutes, endpoints
from serve.http.errors import HTTPError
from serve.http.generation import GenerationRoutes
from serve.http.guards import BODY_SECONDS, MAX_BODY, BodyGuard, HostGuard, KeyGuard
from serve.http.keys import Keys
from serve.http.metrics import Metrics, RequestMeter
from serve.http.ollama import OllamaRoutes
from serve.http.ollama_models import UNSUPPORTED_PATHS, OllamaModelRoutes
from serve.http.replies import error_response
from serve.http.rerank import RerankRoutes
from serve.http.responses import ResponsesRoutes
from serve.http.tokens import TokenRoutes
from serve.registry import Registry
from serve.supervisor import Supervisor

_CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        keys: What opens it.
        key_required: False leaves all but ``/internal/…`` open to every program on this machine, as long as no key is
            named in the home.
        hosts: Host headers allowed besides the loopback names, without a port.
        max_body: Bytes of a request's body at most.
        body_seconds: Seconds that it may take to arrive.
    """

    keys: Keys
    key_required: bool
    hosts: Collection[str] = ()
    max_body: int = MAX_BODY
    body_seconds: float = BODY_SECONDS


def create_app(
    supervisor: Supervisor,
    store: ModelStore,
    access: Access,
    activity: Activity,
    metrics: Metrics,
    stop: Callable[[], None],
) -> ASGIApp:
    """The web application.

    Args:
        supervisor: Gives the engines.
        store: Where models are.
        access: Who may use it.
        activity: Is kept up to date with the requests.
        metrics: Count the requests.
        stop: Makes the server finish and stop.
    """
    registry = Registry(store, AdapterStore(store.home))
    all_routes = AllRoutes(
        generation=GenerationRoutes(supervisor),
        embeddings=EmbeddingsRoutes(supervisor),
        rerank=RerankRoutes(supervisor),
        responses=ResponsesRoutes(supervisor),
        anthropic=AnthropicRoutes(supervisor),
        ollama=OllamaRoutes(supervisor),
        ollama_models=OllamaModelRoutes(supervisor, store, registry),
        tokens=TokenRoutes(supervisor),
        catalogue=CatalogueRoutes(registry),
        internal=InternalRoutes(supervisor, metrics, stop),
    )
    table = endpoints(all_routes)
    routes = [Route(endpoint.path, endpoint.handler, methods=[endpoint.method]) for endpoint in table]
    routes += _undocumented(all_routes, DocsRoutes(table))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestMeter, metrics=metrics, routes=routes),
            Middleware(HostGuard, hosts=access.hosts),
            Middleware(KeyGuard, keys=access.keys, required=access.key_required),
            Middleware(ActivityMeter, activity=activity),
            Middleware(BodyGuard, max_body=access.max_body, seconds=access.body_seconds),
        ],
        exception_handlers={
            LocalLLMError: _localllm_error,
            HTTPException: _http_exception,
            ClientGoneError: _client_gone,
            Exception: _bug,
        },
    )
    app.router.redirect_slashes = False
    return app


def _undocumented(routes: AllRoutes, docs: DocsRoutes) -> list[Route]:
    """The documentation itself, what is refused by name, and what is for our own app."""
    unsupported = routes.ollama_models.unsupported
    return [
        Route("/openapi.json", docs.openapi, methods=["GET"]),
        Route("/docs", docs.page, methods=["GET"]),
        *(Route(path, unsupported, methods=["POST", "DELETE", "HEAD"]) for path in UNSUPPORTED_PATHS),
        Route("/internal/shutdown", routes.internal.shutdown, methods=["POST"]),
    ]


async def _localllm_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LocalLLMError)
    return error_response(error, request.scope["path"])


async def _http_exception(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = HTTPError(405, "method_not_allowed", f"{request.method} is not allowed here.")
    else:
        refusal = HTTPError(
            error.status_code, "not_found", "There is no such path.", "See the list in the documentation."
        )
    response = error_response(refusal, request.scope["path"])
    response.headers.update(error.headers or {})
    return response


async def _client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _bug(request: Request, _error: Exception) -> Response:
    """Any other exception: Starlette raises it again after this answer, and it is logged with its traceback."""
    return error_response(
        HTTPError(500, "server_failed", "The server failed.", "Its log has the details."), request.scope["path"]
    )
