"""The log: one line for every record, as text and as JSON."""

import io
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import requests

from app.logs import JsonFormatter, TextFormatter, Writer
from tests.conftest import SECONDS, ServerProcess, bears_environment

HOSTILE = "a\nINFO forged \x1b[31m\r\0\u2028\x9b é ✓"


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("app", logging.INFO, "", 1, message, values, None)


@pytest.mark.fault("H06")
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_record_is_one_line_without_control_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(record("sent: %s", HOSTILE))
    assert not [c for c in line if ord(c) < 32 or 0x7F <= ord(c) < 0xA0]
    assert len(line.splitlines()) == 1


def test_every_line_of_a_server_is_json_if_it_is_told_so(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(**bears_environment(APP_LOG_FORMAT="json"))
    server.wait_for("ready after")
    answer = requests.get(f"{server.url}/nowhere?x=1", timeout=SECONDS)
    server.wait_for(answer.headers["x-request-id"])
    lines = [json.loads(line) for line in server.lines]
    last = lines[-1]
    assert (last["method"], last["path"], last["status"], last["code"]) == (
        "GET",
        "/nowhere",
        404,
        "not-found",
    )
    assert last["request_id"] == answer.headers["x-request-id"]
    assert 0 <= last["seconds"] < 5
    for line in lines:
        age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
        assert 0 <= age.total_seconds() < 60
        assert {"level", "logger", "message"} <= line.keys()


def test_a_traceback_is_part_of_its_json_line() -> None:
    try:
        raise ZeroDivisionError("no\nnumber")
    except ZeroDivisionError as error:
        entry = record("failed")
        entry.exc_info = (type(error), error, error.__traceback__)
    line = JsonFormatter().format(entry)
    assert "\n" not in line
    assert "ZeroDivisionError" in json.loads(line)["traceback"]


def test_a_closed_stream_is_ignored() -> None:
    stream = io.StringIO()
    writer = Writer(stream)
    writer.setFormatter(TextFormatter())
    writer.emit(record("first"))
    writer.close()
    assert "first" in stream.getvalue()
    stream.close()
    late = Writer(stream)
    late.setFormatter(TextFormatter())
    late.emit(record("nobody hears this"))
    late.close()
