"""``/openapi.json``: the OpenAPI 3.1 document, made from the table of endpoints and the types of their requests."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from localllm import __version__
from serve.http.dialects import Dialect, dialect_of
from serve.http.endpoints import JSON, Endpoint

_REF = "#/components/schemas/{model}"
_DESCRIPTION = (
    "The models of this computer, by OpenAI's, Anthropic's and Ollama's APIs. What is not supported is refused by "
    "name, with status 400 or 501. Fields that official clients send and that ask for nothing are accepted, though "
    "they are not listed here."
)
_ERROR_NAMES: dict[Dialect, str] = {"openai": "Error", "anthropic": "AnthropicError", "ollama": "OllamaError"}
_TEXT = {"type": "string"}
_DETAIL = {
    "message": _TEXT,
    "type": _TEXT,
    "param": {"type": ["string", "null"]},
    "code": _TEXT,
    "hint": _TEXT,
}


def openapi_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document about ``endpoints``."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    names, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        schema = names[(endpoint.body, "validation")] if endpoint.body is not None else None
        paths.setdefault(public_path(endpoint), {})[endpoint.method.lower()] = _operation(endpoint, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "localllm", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), **_error_schemas()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"api_key": []}],
    }


def public_path(endpoint: Endpoint) -> str:
    """The path without the router's own marks."""
    return endpoint.path.replace(":path}", "}")


def _operation(endpoint: Endpoint, schema: dict[str, Any] | None) -> dict[str, Any]:
    error = {"$ref": _REF.format(model=_ERROR_NAMES[dialect_of(endpoint.path)])}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": _operation_id(endpoint),
        "tags": [endpoint.group],
        "responses": {
            "200": {"description": "The answer.", "content": {kind: {} for kind in endpoint.media_types}},
            "default": {"description": "An error.", "content": {JSON: {"schema": error}}},
        },
    }
    if schema is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if "{model" in endpoint.path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]
    if endpoint.path == "/health":
        operation["security"] = [{}, {"bearer": []}, {"api_key": []}]
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    words = public_path(endpoint).replace("{", "").replace("}", "").replace("/", " ").split()
    return "_".join([endpoint.method.lower(), *words])


def _error_schemas() -> dict[str, Any]:
    """The three shapes of :func:`serve.http.dialects.error_body`."""
    detail = {"type": "object", "properties": _DETAIL, "required": ["message", "type", "param", "code"]}
    return {
        "Error": {"type": "object", "properties": {"error": detail}, "required": ["error"]},
        "AnthropicError": {
            "type": "object",
            "properties": {"type": {"const": "error"}, "error": detail},
            "required": ["type", "error"],
        },
        "OllamaError": {
            "type": "object",
            "properties": {**_DETAIL, "error": _TEXT},
            "required": ["error", "code"],
        },
    }
