"""``/tokenize`` and ``/detokenize``, in llama-server's shapes, with the name of a model besides."""

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from localllm.errors import RequestError
from serve.http.disconnect import unless_disconnected
from serve.http.json_body import parse_json
from serve.http.openai_types import TokenId
from serve.http.wire_types import MAX_MODEL_NAME, Wire, validate
from serve.supervisor import Supervisor

# Each piece is a question of its own to the engine.
MAX_PIECES = 4096


class TokenizeRequest(Wire):
    """``POST /tokenize``.

    Attributes:
        model: The model whose tokens they are.
        content: Any text.
        add_special: Put BOS where the model's tokenizer does.
        parse_special: Read ``<|im_end|>`` and its like as the tokens they name, not as text.
        with_pieces: Give each token's text too; a token that is a part of a character has U+FFFD there.
    """

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Wire):
    """``POST /detokenize``."""

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    tokens: list[TokenId]


class TokenRoutes:
    """The routes between text and tokens.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def tokenize(self, request: Request) -> Response:
        """``POST /tokenize``."""
        body = validate(TokenizeRequest, parse_json(await request.body()))
        return JSONResponse({"tokens": await unless_disconnected(request.receive, self._tokenize(body))})

    async def detokenize(self, request: Request) -> Response:
        """``POST /detokenize``."""
        body = validate(DetokenizeRequest, parse_json(await request.body()))
        return JSONResponse({"content": await unless_disconnected(request.receive, self._detokenize(body))})

    async def _tokenize(self, body: TokenizeRequest) -> list[Any]:
        async with self._supervisor.engine(body.model) as (_, engine):
            tokens = await engine.tokenize(body.content, add_special=body.add_special, parse_special=body.parse_special)
            if not body.with_pieces:
                return tokens
            if len(tokens) > MAX_PIECES:
                raise RequestError(
                    f"`with_pieces` is for {MAX_PIECES} tokens at most, and there are {len(tokens)}.",
                    "Send less text, or leave it out.",
                    "with_pieces",
                )
            pieces = await asyncio.gather(*(engine.detokenize([token]) for token in tokens))
            return [{"id": token, "piece": piece} for token, piece in zip(tokens, pieces, strict=True)]

    async def _detokenize(self, body: DetokenizeRequest) -> str:
        async with self._supervisor.engine(body.model) as (_, engine):
            return await engine.detokenize(body.tokens)
