"""Every request that our own OpenAPI document allows, and many that it does not: answered or refused as documented."""

import json
import time
from collections import Counter
from itertools import count
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode, Response, checks

from serve.discovery import ServerRecord
from tests.fuzz.effort import SECONDS, SEED
from tests.fuzz.server import MODEL, credentials, serving

_SHORT_EXAMPLES = 6  # of each operation and kind of data
_LONG_EXAMPLES = 50  # the same, in every round of a long run
_ANSWER_SECONDS = 10
_DOCUMENTED_FAILURES = {501, 503}  # not supported, and no memory or no engine for the model
_LONGEST_MODEL_NAME = 256
_UNKNOWN = "no_such_field"
# Fields that a request is about, as everybody fills them.
_USUAL = {
    "messages": [{"role": "user", "content": "Hello"}],
    "prompt": "Hello",
    "input": "Hello",
    "content": "Hello",
    "tokens": [72, 105],
    "max_tokens": 3,
}
# What a schema cannot say (one field needs another) is refused too; failures are checked more closely below.
_NOT_CHECKED = [checks.positive_data_acceptance, checks.not_a_server_error]


def plain(value: Any) -> Any:
    """``value`` in one of several ways to write it that are the same here, but not to JSON Schema.

    3 instead of 3.0, which is the same number there, but no whole one here, where types are exact; and nothing for a
    field that is null.
    """
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [plain(item) for item in value]
        case dict():
            return {name: plain(item) for name, item in value.items() if item is not None}
    return value


def aim(case: Case) -> None:
    """Name the model that is there, where any name would do: the others are refused before anything happens."""
    if isinstance(case.body, dict | list):
        case.body = plain(case.body)
    if isinstance(case.body, dict):
        name = case.body.get("model")
        if isinstance(name, str) and 0 < len(name) <= _LONGEST_MODEL_NAME:
            case.body["model"] = MODEL


def simpler(body: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A usual request with one or two of the fields of ``body``: with all of them, some two contradict each other."""
    more = sorted(body.keys() - _USUAL.keys() - {"model"})
    kept = data.draw(st.sets(st.sampled_from(more), max_size=2)) if more else set()
    return {name: _USUAL.get(name, value) for name, value in body.items() if name not in more or name in kept}


def check_pieces(response: Response) -> None:
    """What is streamed is JSON, piece by piece."""
    kind = response.headers.get("content-type", [""])[0].partition(";")[0]
    if kind == "application/x-ndjson":
        for line in response.text.splitlines():
            assert isinstance(json.loads(line), dict), line
    if kind == "text/event-stream":
        for line in response.text.splitlines():
            name, _, value = line.partition(": ")
            assert name in {"event", "data", ""}, line
            assert name != "data" or value == "[DONE]" or isinstance(json.loads(value), dict), line


class Client:
    """Asks what the fuzzer makes up, and counts the answers.

    Args:
        record: The server.
    """

    def __init__(self, record: ServerRecord) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.headers = credentials(record)
        # The key is always right: a wrong one would be all that is wrong with many requests.
        config = schemathesis.Config.from_dict(
            {
                "generation": {"with-security-parameters": False},
                # A POST is refused before its path is looked at, unless it brings JSON.
                "phases": {"coverage": {"unexpected-methods": ["delete", "patch", "put", "trace"]}},
            }
        )
        self.schema = schemathesis.openapi.from_url(
            f"{record.base_url}/openapi.json", config=config, headers=self.headers
        )

    @property
    def operations(self) -> list[APIOperation]:
        found = [operation.ok() for operation in self.schema.get_all_operations()]
        assert len(found) > 15
        return found

    def try_limits(self, operation: APIOperation) -> None:
        """Ask with every field just inside its limits, just outside of them, missing, of another type; always alike."""
        for case in self.schema.iter_coverage_cases(
            operation, generation_modes=list(GenerationMode), generation_config=self.schema.config.generation
        ):
            aim(case)
            self.ask(case)

    def explore(self, operation: APIOperation, mode: GenerationMode, n_examples: int, seed: int) -> None:
        """Ask for ``operation`` with data that its schema allows, or with data that it does not."""

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=n_examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode), st.data())
        def ask(case: Case, data: st.DataObject) -> None:
            aim(case)
            allowed = mode is GenerationMode.POSITIVE and isinstance(case.body, dict)
            # False comes first, so the first request of all is one that must be answered.
            if not data.draw(st.booleans()):
                case.path_parameters = dict.fromkeys(case.path_parameters, MODEL)
                if allowed:
                    case.body = simpler(case.body, data)
            self.ask(case)
            if allowed and data.draw(st.booleans()):
                self.ask_with_unknown_field(case)

        ask()

    def ask(self, case: Case) -> None:
        response = case.call(headers=self.headers, timeout=_ANSWER_SECONDS)
        self.answers[case.operation.label, response.status_code] += 1
        assert response.status_code < 500 or response.status_code in _DOCUMENTED_FAILURES, (
            f"{response.status_code}: {response.text}\n{case.as_curl_command()}"
        )
        case.validate_response(response, headers=self.headers, excluded_checks=_NOT_CHECKED)
        check_pieces(response)

    def ask_with_unknown_field(self, case: Case) -> None:
        """One more field than an allowed request has, and it is refused, by its name where all else was right."""
        case.body = {**case.body, _UNKNOWN: 1}
        response = case.call(headers=self.headers, timeout=_ANSWER_SECONDS)
        self.answers[case.operation.label, response.status_code] += 1
        assert response.status_code == 400, case.as_curl_command()


@pytest.mark.slow
def test_every_field_is_held_to_its_documented_limits(home):
    with serving(home) as record:
        client = Client(record)
        for operation in client.operations:
            client.try_limits(operation)
    print(f"HTTP: {client.answers.total()} requests about limits")


@pytest.mark.slow
def test_every_request_is_answered_or_refused_as_documented(home):
    until = time.monotonic() + SECONDS
    examples = _LONG_EXAMPLES if SECONDS else _SHORT_EXAMPLES
    with serving(home) as record:
        client = Client(record)
        for seed in count(SEED):
            for operation in client.operations:
                client.explore(operation, GenerationMode.POSITIVE, examples, seed)
                if operation.body:
                    client.explore(operation, GenerationMode.NEGATIVE, examples, seed)
            if time.monotonic() >= until:
                break
    reached = {label for label, status in client.answers if status == 200}
    assert {label for label, _ in client.answers} == reached, "some were only refused, so little of them was tested"
    print(f"HTTP: {client.answers.total()} requests, seeds {SEED} to {seed}")
