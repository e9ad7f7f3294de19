"""``/v1/rerank`` and ``/rerank``, in the shape that Jina's and Cohere's clients know.

A reranker (a GGUF file that is pooled by rank) gives its own score, as llama.cpp's server does; its scale is the
model's, often a logit. For an embedding model it is the cosine of query and document. Only the order means the same
everywhere.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Scores
from serve.http.disconnect import unless_disconnected
from serve.http.json_body import parse_json
from serve.http.wire_types import MAX_MODEL_NAME, Wire, refuse, validate
from serve.supervisor import Supervisor

MAX_DOCUMENTS = 2048


class DocumentText(Wire):
    """A document in an object."""

    text: str


def _text(document: object) -> object:
    if isinstance(document, dict) and document.keys() == {"text"}:
        return document["text"]
    return document


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refuse("It is empty.")
    return text


_Document = Annotated[
    str, AfterValidator(_not_blank), BeforeValidator(_text, json_schema_input_type=str | DocumentText)
]


class RerankRequest(Wire):
    """``POST /v1/rerank``.

    Attributes:
        model: A reranker, or an embedding model.
        query: What is looked for.
        documents: Texts, or objects with a ``text``.
        top_n: How many results, the best ones; all of them without it.
        return_documents: Put each document's text into its result.
    """

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    query: Annotated[str, AfterValidator(_not_blank)]
    documents: list[_Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class RerankRoutes:
    """The route that ranks documents.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def rerank(self, request: Request) -> Response:
        """``POST /v1/rerank``."""
        body = validate(RerankRequest, parse_json(await request.body()))
        model, scores = await unless_disconnected(request.receive, self._scores(body))
        return JSONResponse(
            {
                "object": "list",
                "model": model,
                "results": _results(body, scores.values),
                "usage": {"prompt_tokens": scores.n_tokens, "total_tokens": scores.n_tokens},
            }
        )

    async def _scores(self, body: RerankRequest) -> tuple[str, Scores]:
        async with self._supervisor.engine(body.model) as (served, engine):
            return served.name, await engine.rerank(body.query, body.documents)


def _results(body: RerankRequest, scores: tuple[float, ...]) -> list[dict[str, Any]]:
    """The best documents, the best one first; equal ones in the order in which they came."""
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in best]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": body.documents[result["index"]]}
    return results
