"""Which scope of a key each path needs.

What is not listed needs ``admin``: a route that somebody forgets here is closed, not open. A test holds the list
against the routes.
"""

ANY_KEY = ""  # whatever its scopes

# The first beginning that fits counts; one that ends in "/" stands for all below it, the others for themselves alone.
_TABLE: tuple[tuple[str, str], ...] = (
    ("/", ANY_KEY),
    ("/docs", ANY_KEY),
    ("/health", ANY_KEY),
    ("/openapi.json", ANY_KEY),
    ("/api/version", ANY_KEY),
    ("/metrics", "metrics"),
    ("/v1/chat/", "chat"),
    ("/v1/completions", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/responses/", "chat"),
    ("/v1/messages", "chat"),
    ("/v1/messages/", "chat"),
    ("/api/chat", "chat"),
    ("/api/generate", "chat"),
    ("/tokenize", "chat"),
    ("/detokenize", "chat"),
    ("/v1/embeddings", "embed"),
    ("/v1/rerank", "embed"),
    ("/rerank", "embed"),
    ("/api/embed", "embed"),
    ("/api/embeddings", "embed"),
    ("/v1/models", "models"),
    ("/v1/models/", "models"),
    ("/api/tags", "models"),
    ("/api/show", "models"),
    ("/api/ps", "models"),
    ("/internal/load", "models"),
    ("/internal/unload", "models"),
)


def scope_of(path: str) -> str:
    """The scope that a request for ``path`` needs; :data:`ANY_KEY` where any key will do."""
    for known, scope in _TABLE:
        if path == known or (known != "/" and known.endswith("/") and path.startswith(known)):
            return scope
    return "admin"
