"""``/v1/embeddings`` and ``/v1/rerank``."""

import base64
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
                    for index, vector in enumerate(embedded.vectors)
                ],
                "model": model,
                "usage": {"prompt_tokens": embedded.n_tokens, "total_tokens": embedded.n_tokens},
            }
        )

    async def rerank(self, _request: Request) -> Response:
        """``POST /v1/rerank``, which no engine here can do."""
        raise HTTPError(
            501, "not_supported", "/v1/rerank is not supported.", "Compare embeddings of /v1/embeddings instead."
        )

    async def _embed(self, body: EmbeddingsRequest) -> tuple[str, Embeddings]:
        async with self._supervisor.engine(body.model) as (manifest, engine):
            check_dimensions(body.dimensions, engine.info)
            return str(manifest.model_name), await engine.embed(body.input)


def check_dimensions(wanted: int | None, info: EngineInfo) -> None:
    """Refuse embeddings of another width than the model's own.

    Raises:
        HTTPError: 400, naming ``dimensions``.
    """
    if wanted not in (None, info.n_embd):
        raise HTTPError(
            400,
            "unsupported_parameter",
            f"`dimensions` {wanted} is not supported: this model's embeddings have {info.n_embd}.",
            "Leave it out.",
            "dimensions",
        )


def _base64_floats(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI documents it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
