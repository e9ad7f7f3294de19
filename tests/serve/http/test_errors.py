"""Errors survive the wire: what the server describes, the client rebuilds."""

import json

import pytest

from localllm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineLoadError,
    InvalidModelError,
    MemoryFitError,
    ModelNotFoundError,
    RequestError,
    ServerError,
    StoreError,
)
from serve.http.errors import HTTPError, describe, rebuild

ERRORS = [
    (ContextLengthError(9000, 8192), 400, "invalid_request_error"),
    (RequestError("No.", "Leave it out.", "stop"), 400, "invalid_request_error"),
    (ModelNotFoundError("No model.", "Did you mean tiny?"), 404, "not_found_error"),
    (EngineBusyError("Full.", "Wait."), 429, "rate_limit_error"),
    (EngineDiedError("Dead."), 503, "server_error"),
    (EngineLoadError("Cannot."), 503, "server_error"),
    (EngineError("Odd."), 503, "server_error"),
    (MemoryFitError("Big.", "Smaller."), 503, "server_error"),
    (InvalidModelError("Bad."), 500, "server_error"),
    (StoreError("Store."), 500, "server_error"),
    (ServerError("Stopping.", "Later."), 500, "server_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS, ids=lambda value: type(value).__name__)
def test_round_trip(error, status, kind):
    reply = describe(error)
    assert (reply.status, reply.body["error"]["type"]) == (status, kind)
    assert reply.body["error"]["message"] == str(error)
    rebuilt = rebuild(reply.status, json.loads(json.dumps(reply.body)))
    assert type(rebuilt) is type(error)
    assert vars(rebuilt) == vars(error)


def test_refusals_become_request_errors():
    reply = describe(HTTPError(400, "unsupported_parameter", "`tools` is not supported.", "Leave it out.", "tools"))
    rebuilt = rebuild(reply.status, reply.body)
    assert isinstance(rebuilt, RequestError)
    assert (rebuilt.param, rebuilt.hint) == ("tools", "Leave it out.")


@pytest.mark.parametrize("body", [None, [], {}, {"error": "text"}, {"error": {"message": 5}}, "x"])
def test_other_bodies_become_server_errors(body):
    assert isinstance(rebuild(502, body), ServerError)
