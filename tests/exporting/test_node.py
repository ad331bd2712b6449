"""The Node programs: the proof, every picture, the API of the server, the lint."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.conftest import IMAGES, SECONDS, ServerProcess, started
from tests.exporting.programs import NODE_MODULES, assert_fails, assert_holds
from tests.http_client import assert_problem, raw
from tests.web import test_app, test_openapi, test_wrappings

# 16 bits of gray, and CMYK, which sharp makes RGB by color profiles
OTHERWISE = {"f03_gray16_300x300.png", "h00_cmyk_400x300.jpg", "h01_ycck_gray_prog_600x400.jpg"}
OPENAPI = Path(__file__).parent.parent.parent / "app" / "web" / "view" / "openapi.json"
# Invalid uploads that busboy and sharp judge otherwise: a part without a disposition, a long boundary, PDF.
LENIENT = {10, 11, 16, 21}  # and one that can be sent once only
UNNAMED = {0, 2, 3}  # files without a name, which are texts for busboy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("node") or not (NODE_MODULES / "onnxruntime-node").exists(),
        reason="node or its packages are missing",
    ),
]


def cases(test: Callable[..., None], without: set[int]) -> list[Any]:
    """The parameters of a test of the server, without some."""
    values = next(mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    return [value for index, value in enumerate(values) if index not in without]


@pytest.fixture(scope="module")
def node(exported: Path) -> Path:
    """The folder of the Node programs with its packages."""
    folder = exported / "node"
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(NODE_MODULES)
    return folder


@pytest.fixture(scope="module")
def server(node: Path) -> Iterator[ServerProcess]:
    command = ["sh", "-c", f"cd '{node}' && exec node server.mjs 1>&2"]
    with started(command, PORT="0") as process:
        process.url = process.wait_for(r"running on (http://[\d.:]+)")[1]
        yield process


def test_the_proof_holds(node: Path) -> None:
    assert_holds(["node", "classify.mjs"], node)


def test_a_spoiled_model_fails_the_proof(node: Path, spoiled: Path) -> None:
    assert_fails(["node", "classify.mjs"], spoiled / "node")


def test_every_picture_is_answered_as_the_server_answers_it(
    node: Path, answers: dict[str, dict[str, float]]
) -> None:
    command = ["node", "classify.mjs", "--json", *map(str, IMAGES)]
    ended = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=SECONDS)
    rows = {Path(row["file"]).name: row for row in map(json.loads, ended.stdout.splitlines())}
    unread = {line.partition(": ")[0].rpartition("/")[2] for line in ended.stderr.splitlines()}
    assert unread <= {"k00_bmp_200x260.bmp"}  # which sharp does not read
    for name, expected in answers.items():
        if name in rows and name not in OTHERWISE:
            found = {each["label"]: each["score"] for each in rows[name]["predictions"]}
            worst = max(abs(found[label] - expected[label]) for label in expected)
            assert worst <= 1e-3, f"{name}: {worst}"
            assert rows[name]["result"] == max(expected, key=expected.__getitem__)


@pytest.mark.parametrize(
    ("request_parts", "status", "code"),
    cases(test_app.test_an_invalid_upload_is_refused_with_its_status_and_code, LENIENT),
)
def test_an_invalid_upload_is_refused_as_the_server_refuses_it(
    server: ServerProcess, request_parts: dict[str, Any], status: int, code: str
) -> None:
    assert_problem(requests.post(f"{server.url}/analyze", timeout=SECONDS, **request_parts), status, code)
    assert server.post(test_app.PHOTO).status_code == 200


@pytest.mark.parametrize(
    "options", cases(test_wrappings.test_a_photo_is_answered_in_whatever_wrapping, UNNAMED)
)
def test_a_photo_is_answered_in_the_wrappings_of_real_clients(
    server: ServerProcess, options: dict[str, Any]
) -> None:
    answer = requests.post(f"{server.url}/analyze", timeout=SECONDS, **options)
    assert answer.status_code == 200, answer.text
    assert answer.json() == server.post(test_app.PHOTO).json()


def test_a_declared_length_over_the_limit_is_refused_before_the_body(server: ServerProcess) -> None:
    head = b"POST /analyze HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99999999\r\n\r\n"
    answer = raw(server, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"payload-too-large" in answer


def test_an_upload_without_a_declared_length_is_refused_at_the_limit(server: ServerProcess) -> None:
    parts = iter([b"x" * 1_000_000] * 11)
    answer = requests.post(
        f"{server.url}/analyze", parts, headers={"Content-Type": "image/png"}, timeout=SECONDS
    )
    assert_problem(answer, 413, "payload-too-large")
    assert server.post(test_app.PHOTO).status_code == 200


def test_unknown_addresses_and_methods_are_problems_too(server: ServerProcess) -> None:
    assert_problem(requests.get(f"{server.url}/nowhere", timeout=SECONDS), 404, "not-found")
    refused = requests.get(f"{server.url}/analyze", timeout=SECONDS)
    assert_problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "POST"


def test_the_server_answers_as_its_document_says(server: ServerProcess) -> None:
    document = schemathesis.openapi.from_path(OPENAPI)
    asked = 0
    for operation in document.get_all_operations():
        if operation.ok().path not in ("/analyze", "/healthz", "/readyz"):
            continue

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.ok().as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(base_url=server.url, checks=test_openapi.CHECKS, timeout=SECONDS)

        ask()
    assert asked >= 3


def test_eslint_has_nothing_to_say() -> None:
    programs = Path(__file__).parent.parent.parent / "app" / "exporting" / "programs"
    config = NODE_MODULES.parent / "eslint.config.mjs"
    command = ["node", NODE_MODULES / "eslint" / "bin" / "eslint.js", "--config", config, "."]
    ended = subprocess.run(command, cwd=programs, capture_output=True, text=True, timeout=SECONDS)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stdout + ended.stderr
