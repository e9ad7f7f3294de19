"""``/v1/embeddings``."""

import base64
import math
import struct
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Embeddings, EngineInfo
from serve.http.disconnect import unless_disconnected
from serve.http.errors import HTTPError
from serve.http.json_body import parse_json
from serve.http.openai_types import EmbeddingsRequest
from serve.http.wire_types import validate
from serve.supervisor import Supervisor


class EmbeddingsRoutes:
    """The route that makes embeddings.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def embeddings(self, request: Request) -> Response:
        """``POST /v1/embeddings``."""
        body = validate(EmbeddingsRequest, parse_json(await request.body()))
        model, embedded = await unless_disconnected(request.receive, self._embed(body))
        encode = _base64_floats if body.encoding_format == "base64" else list
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": encode(vector)}
                    for index, vector in enumerate(shortened(embedded.vectors, body.dimensions))
                ],
                "model": model,
                "usage": {"prompt_tokens": embedded.n_tokens, "total_tokens": embedded.n_tokens},
            }
        )

    async def _embed(self, body: EmbeddingsRequest) -> tuple[str, Embeddings]:
        async with self._supervisor.engine(body.model) as (served, engine):
            check_dimensions(body.dimensions, engine.info)
            return served.name, await engine.embed(body.input)


def check_dimensions(wanted: int | None, info: EngineInfo) -> None:
    """Refuse embeddings that are wider than the model's own.

    Raises:
        HTTPError: 400, naming ``dimensions``.
    """
    if wanted is not None and wanted > info.n_embd:
        raise HTTPError(
            400,
            "invalid_value",
            f"`dimensions` {wanted} is too many: this model's embeddings have {info.n_embd}.",
            "Ask for fewer, or leave it out.",
            "dimensions",
        )


def shortened(vectors: Sequence[Sequence[float]], dimensions: int | None) -> list[Sequence[float]]:
    """The first ``dimensions`` numbers of each vector, again at L2 norm 1; all of them for None.

    Only models that were trained for it (Matryoshka representation learning, arXiv 2205.13147) keep their meaning so.
    """
    if dimensions is None:
        return list(vectors)
    return [vector if len(vector) == dimensions else _normalised(vector[:dimensions]) for vector in vectors]


def _normalised(vector: Sequence[float]) -> Sequence[float]:
    norm = math.hypot(*vector)
    return [value / norm for value in vector] if norm > 0 else vector


def _base64_floats(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI documents it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
