"""The table of what the server answers: for its router, for ``/openapi.json`` and for ``/docs``."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from serve.http.anthropic import AnthropicRoutes
from serve.http.anthropic_types import CountTokensRequest, MessagesRequest
from serve.http.catalogue import CatalogueRoutes, InternalRoutes
from serve.http.embeddings import EmbeddingsRoutes
from serve.http.generation import GenerationRoutes
from serve.http.ollama import OllamaRoutes
from serve.http.ollama_models import OllamaModelRoutes
from serve.http.ollama_types import EmbedRequest, OllamaChatRequest, OllamaGenerateRequest, ShowRequest
from serve.http.openai_types import ChatRequest, CompletionRequest, EmbeddingsRequest, LoadRequest
from serve.http.rerank import RerankRequest, RerankRoutes
from serve.http.responses import ResponsesRoutes
from serve.http.responses_types import ResponsesRequest
from serve.http.tokens import DetokenizeRequest, TokenizeRequest, TokenRoutes
from serve.http.wire_types import Wire

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
TEXT = "text/plain"


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method: ``GET`` or ``POST``.
        path: As the router takes it.
        handler: Answers.
        group: Whose API it is; a heading of the documentation.
        summary: What it does, in a line.
        body: What it takes; None when it takes nothing.
        media_types: What it may answer with.
    """

    method: str
    path: str
    handler: Handler
    group: str
    summary: str
    body: type[Wire] | None = None
    media_types: tuple[str, ...] = (JSON,)


@dataclass(frozen=True)
class AllRoutes:
    """The objects that answer."""

    generation: GenerationRoutes
    embeddings: EmbeddingsRoutes
    rerank: RerankRoutes
    responses: ResponsesRoutes
    anthropic: AnthropicRoutes
    ollama: OllamaRoutes
    ollama_models: OllamaModelRoutes
    tokens: TokenRoutes
    catalogue: CatalogueRoutes
    internal: InternalRoutes


def endpoints(routes: AllRoutes) -> list[Endpoint]:
    """Everything that is supported and that is for others than our own app."""
    return [*_openai(routes), *_anthropic(routes), *_ollama(routes), *_rerank(routes), *_own(routes)]


def _openai(routes: AllRoutes) -> list[Endpoint]:
    group, stream = "OpenAI", (JSON, EVENTS)
    return [
        Endpoint(
            "POST",
            "/v1/chat/completions",
            routes.generation.chat,
            group,
            "Answer a chat, in one piece or streamed.",
            ChatRequest,
            stream,
        ),
        Endpoint(
            "POST",
            "/v1/completions",
            routes.generation.completions,
            group,
            "Continue texts or tokens; score prompts with echo and logprobs.",
            CompletionRequest,
            stream,
        ),
        Endpoint(
            "POST",
            "/v1/responses",
            routes.responses.responses,
            group,
            "Answer a conversation; nothing is stored.",
            ResponsesRequest,
            stream,
        ),
        Endpoint(
            "POST",
            "/v1/embeddings",
            routes.embeddings.embeddings,
            group,
            "Embed texts or tokens.",
            EmbeddingsRequest,
        ),
        Endpoint("GET", "/v1/models", routes.catalogue.models, group, "List the models that can be served."),
        Endpoint("GET", "/v1/models/{model:path}", routes.catalogue.model, group, "Tell about one model."),
    ]


def _anthropic(routes: AllRoutes) -> list[Endpoint]:
    group = "Anthropic"
    return [
        Endpoint(
            "POST",
            "/v1/messages",
            routes.anthropic.messages,
            group,
            "Answer a chat, in one piece or streamed.",
            MessagesRequest,
            (JSON, EVENTS),
        ),
        Endpoint(
            "POST",
            "/v1/messages/count_tokens",
            routes.anthropic.count_tokens,
            group,
            "Count the tokens of a chat.",
            CountTokensRequest,
        ),
    ]


def _ollama(routes: AllRoutes) -> list[Endpoint]:
    group, stream = "Ollama", (LINES, JSON)
    models = routes.ollama_models
    return [
        Endpoint(
            "POST",
            "/api/chat",
            routes.ollama.chat,
            group,
            "Answer a chat, streamed or in one piece.",
            OllamaChatRequest,
            stream,
        ),
        Endpoint(
            "POST",
            "/api/generate",
            routes.ollama.generate,
            group,
            "Answer a prompt, streamed or in one piece.",
            OllamaGenerateRequest,
            stream,
        ),
        Endpoint("POST", "/api/embed", models.embed, group, "Embed texts.", EmbedRequest),
        Endpoint("POST", "/api/show", models.show, group, "Tell about one model.", ShowRequest),
        Endpoint("GET", "/api/tags", models.tags, group, "List the models that can be served."),
        Endpoint("GET", "/api/ps", models.ps, group, "List the models in memory."),
        Endpoint("GET", "/api/version", models.version, group, "Tell this server's version."),
        Endpoint("GET", "/", models.greet, group, "Say that there is a server.", media_types=(TEXT,)),
    ]


def _rerank(routes: AllRoutes) -> list[Endpoint]:
    summary = "Rank documents by how well they suit a query."
    return [
        Endpoint("POST", path, routes.rerank.rerank, "Jina and Cohere", summary, RerankRequest)
        for path in ("/v1/rerank", "/rerank")
    ]


def _own(routes: AllRoutes) -> list[Endpoint]:
    group = "Tokens and state"
    return [
        Endpoint("POST", "/tokenize", routes.tokens.tokenize, group, "Turn a text into tokens.", TokenizeRequest),
        Endpoint("POST", "/detokenize", routes.tokens.detokenize, group, "Turn tokens into a text.", DetokenizeRequest),
        Endpoint("GET", "/health", routes.internal.health, group, "Tell whether the server is there; needs no key."),
        Endpoint("GET", "/metrics", routes.internal.metrics, group, "Metrics for Prometheus.", media_types=(TEXT,)),
        Endpoint(
            "POST", "/internal/load", routes.internal.load, group, "Load a model; always needs a key.", LoadRequest
        ),
    ]
