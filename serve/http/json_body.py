"""Strict JSON: what two parsers could read in two ways is refused."""

import json
import re
from typing import Any, NoReturn

from serve.http.errors import HTTPError

MAX_DEPTH = 32
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(raw: bytes) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Raises:
        HTTPError: 400: no JSON, no object, a name twice in an object, ``NaN`` or ``Infinity``, or nested too deeply.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # The parser's own words quote nothing of the text; a decoder's would.
        reason = (
            error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, a huge number, or nested too deeply"
        )
        raise HTTPError(400, "invalid_json", f"The body is not valid JSON: {reason}.") from None
    if not isinstance(value, dict):
        raise HTTPError(400, "invalid_json", "The body must be a JSON object.")
    _check_depth(value)
    if _SURROGATE.search(raw):
        _check_pairs(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise HTTPError(400, "invalid_json", "The body names a field twice.")
    return record


def _no_constant(name: str) -> NoReturn:
    raise HTTPError(400, "invalid_json", f"{name} is not a JSON number.")


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise HTTPError(400, "invalid_json", f"The body is nested more than {MAX_DEPTH} levels deep.")
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = [item for item in below if isinstance(item, dict | list)]


def _check_pairs(value: object) -> None:
    """Refuse one half of a surrogate pair: such text can be encoded nowhere later."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HTTPError(400, "invalid_json", "The body holds one half of a surrogate pair.") from None
