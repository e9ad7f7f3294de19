"""``/openapi.json``, and ``/docs``: the same as one plain page, with no script and nothing to fetch from anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from serve.http.endpoints import Endpoint
from serve.http.openapi import openapi_document

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}table{border-collapse:collapse}"
    "td{border-top:1px solid #8884;padding:.1rem .8rem .1rem 0;vertical-align:top}summary{cursor:pointer}"
)
# The page itself may load nothing: not even the icon that a browser asks for.
_CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


class DocsRoutes:
    """The routes of the documentation.

    Args:
        endpoints: What it is about.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    async def openapi(self, _request: Request) -> Response:
        """``GET /openapi.json``."""
        return JSONResponse(self._document)

    async def page(self, _request: Request) -> Response:
        """``GET /docs``."""
        headers = {"content-security-policy": _CONTENT_SECURITY_POLICY}
        return HTMLResponse(docs_page(self._document), headers=headers)

    @cached_property
    def _document(self) -> dict[str, Any]:
        # Made when it is first asked for: it takes tens of milliseconds, and most servers never need it.
        return openapi_document(self._endpoints)


def docs_page(document: Mapping[str, Any]) -> str:
    """The page about an OpenAPI document of :func:`serve.http.openapi.openapi_document`."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    body = "".join(_groups(document))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1><p>{escape(info['description'])}</p>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>. A key is sent as '
        "<code>Authorization: Bearer KEY</code> or <code>x-api-key: KEY</code>.</p>"
        f"{body}</body></html>"
    )


def _groups(document: Mapping[str, Any]) -> Iterator[str]:
    group = ""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["tags"][0] != group:
                group = operation["tags"][0]
                yield f"<h2>{escape(group)}</h2>"
            yield f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation['summary'])}</p>"
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                yield _fields(_resolved(schema, document), document)


def _fields(schema: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field, document))}</td>"
        f"<td>{'required' if name in required else escape(_default(field))}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<details><summary>Fields</summary><table>{rows}</table></details>"


def _type(field: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """A field's type in a few words."""
    if "$ref" in field:
        return _type(_resolved(field, document), document)
    if "anyOf" in field:
        # Twice the same word, as for two kinds of lists, says nothing more.
        return " or ".join(dict.fromkeys(_type(option, document) for option in field["anyOf"]))
    if "const" in field or "enum" in field:
        return ", ".join(str(value) for value in field.get("enum", [field.get("const")]))
    limits = [f"{sign} {field[key]}" for key, sign in _LIMITS.items() if key in field]
    return " ".join([str(field.get("type", "any")), *limits])


_LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None or isinstance(default, dict | list) else f"default {str(default).lower()}"


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference names."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    resolved: Mapping[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return resolved
