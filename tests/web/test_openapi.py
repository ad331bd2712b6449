"""/openapi.json is true: schemathesis makes requests out of it, and judges the answers by it."""

from collections.abc import Callable

import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app import __version__
from app.errors import RequestError
from tests.conftest import SECONDS, ServerProcess, bears_environment

# Not whether what fits the schema is accepted: bytes that fit "binary" are seldom a photo.
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def test_every_answer_is_as_the_document_says(bears: ServerProcess) -> None:
    document = schemathesis.openapi.from_url(f"{bears.url}/openapi.json", timeout=SECONDS)
    asked = 0
    for operation in document.get_all_operations():

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.ok().as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(base_url=bears.url, checks=CHECKS, timeout=SECONDS)

        ask()
    assert asked >= 20


def test_the_document_has_what_is_switched_on_alone(
    bears: ServerProcess, start_server: Callable[..., ServerProcess]
) -> None:
    other = start_server(**bears_environment(APP_ALLOW_URL="true", APP_METRICS="false"))
    plain, more = (requests.get(f"{s.url}/openapi.json", timeout=SECONDS).json() for s in (bears, other))
    assert plain["info"]["version"] == __version__
    assert plain["paths"]["/analyze"].keys() == {"post"}
    assert more["paths"]["/analyze"].keys() == {"get", "post"}
    assert plain["paths"].keys() - more["paths"].keys() == {"/metrics"}


def test_every_code_of_an_error_is_in_the_document(bears: ServerProcess) -> None:
    document = requests.get(f"{bears.url}/openapi.json", timeout=SECONDS).json()
    codes = set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"])
    pending: list[type[RequestError]] = [RequestError]
    while pending:
        error = pending.pop()
        assert error.code in codes
        pending += error.__subclasses__()
