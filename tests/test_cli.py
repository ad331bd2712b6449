"""The command line: its output and its exit codes."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import segno

from app.commands.lan import local_address
from tests.conftest import DATA, ROOT, SECONDS, V1_CHECKPOINT, ServerProcess, bears_environment, run_app
from tests.http_server import send, serving

PHOTO = str(DATA / "images" / "a05_640x480.jpg")


def test_predict_answers_as_the_server_does(bears: ServerProcess) -> None:
    ended = run_app("predict", PHOTO, "--json", **bears_environment())
    assert (ended.returncode, ended.stderr) == (0, "")
    answer = json.loads(ended.stdout)
    assert answer.pop("file") == PHOTO
    assert answer == bears.post(Path(PHOTO).read_bytes()).json()


def test_predict_prints_a_line_a_photo_and_names_those_it_cannot_read() -> None:
    ended = run_app("predict", PHOTO, __file__, "nowhere.jpg", PHOTO, **bears_environment())
    assert ended.returncode == 1
    assert ended.stdout == f"{PHOTO}: teddys (98.4%)\n" * 2
    assert f"{__file__}: No picture was recognized" in ended.stderr
    assert "nowhere.jpg" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["predict", PHOTO]])
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"APP_CLASSES": "black,grizzly"},
            "has 3 outputs, the setting classes lists 2 names (black, grizzly)",
        ),
        ({"APP_IMAGE_SIZE": "9"}, "The variable APP_IMAGE_SIZE is"),
        (
            {"APP_MODEL_URL": "/nowhere/stage-2.pth"},
            "/nowhere/stage-2.pth does not exist; the path of a file was expected, or a link",
        ),
        ({"APP_MODEL_URL": str(DATA / "v1" / "meta.json")}, "The file is a JSON text"),
        ({"APP_IMAGE_SIZE": "big"}, "The variable APP_IMAGE_SIZE is 'big'"),
        ({"APP_CLASES": "a,b"}, "Did you mean 'classes'?"),
    ],
)
def test_a_file_that_cannot_be_served_ends_with_exit_code_1_and_one_sentence(
    command: list[str], environment: dict[str, str], sentence: str
) -> None:
    ended = run_app(*command, **bears_environment() | environment)
    assert ended.returncode == 1
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in ended.stderr


def test_a_web_page_instead_of_a_checkpoint_is_named() -> None:
    with serving(lambda handler: send(handler, b"<!DOCTYPE html><title>Sign in")) as (url, _):
        ended = run_app("serve", "--port", "0", **bears_environment(APP_MODEL_URL=f"{url}/stage-2.pth"))
    assert ended.returncode == 1
    assert "is a web page, but a checkpoint" in ended.stderr


def test_sigterm_ends_the_server_with_exit_code_0(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(**bears_environment())
    server.wait_for("ready after")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SECONDS) == 0


def test_a_port_that_is_taken_is_an_error(bears: ServerProcess) -> None:
    port = bears.url.rpartition(":")[2]
    ended = run_app("serve", "--port", port, **bears_environment())
    assert ended.returncode == 1
    said = ended.stderr.splitlines()[-1]
    assert said.startswith(f"error: Port {port} is in use: another program listens there")
    assert f"--port {int(port) + 1} " in said
    assert "Errno" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--host", "192.0.2.1", "--port", "0"], 1, "--host is 192.0.2.1, which is not an address of this"),
        (["--host", "nowhere.invalid", "--port", "0"], 1, "--host is nowhere.invalid, which is not an"),
        (["--port", "70000"], 2, "'70000' is not a port, a number from 0 to 65535"),
        (["--port", "http"], 2, "'http' is not a port"),
        (["--port", "9" * 5000], 2, "999…' is not a port"),
    ],
)
def test_an_address_where_nobody_can_listen_is_named(arguments: list[str], code: int, sentence: str) -> None:
    ended = run_app("serve", *arguments, **bears_environment())
    assert ended.returncode == code
    assert sentence in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_the_settings_file_can_be_another_one(tmp_path: Path) -> None:
    file = tmp_path / "bears.toml"
    file.write_text(f'model_url = "{V1_CHECKPOINT}"\nclasses = ["black", "grizzly", "teddys"]\n')
    ended = run_app("predict", PHOTO, "--settings", str(file))
    assert ended.stdout == f"{PHOTO}: teddys (98.4%)\n"


def test_help_names_every_command() -> None:
    ended = run_app("--help")
    assert ended.returncode == 0
    assert all(command in ended.stdout for command in ("serve", "predict", "check", "graph"))


def test_nothing_about_its_users_is_stored(tmp_path: Path) -> None:
    # ONNX Runtime's telemetry would store a device id and a queue; with CI set it is off in any case
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-m", "app", "predict", PHOTO]
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment | bears_environment() | home, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_the_address_for_a_phone_and_its_qr_code_are_printed_on_a_terminal() -> None:
    """A pseudo-terminal in the place of a person's; zbar or a phone reads the same drawing."""
    reader, terminal = os.openpty()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "serve", "--host", "0.0.0.0", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=terminal, stderr=subprocess.PIPE, text=True)
    os.close(terminal)
    assert process.stderr is not None
    try:
        assert any("ready after" in line for line in process.stderr)
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)
    drawn = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody holds with an error
        while part := os.read(reader, 65536):
            drawn += part
    os.close(reader)
    text = drawn.decode()
    address = local_address()
    if not address:
        assert text == ""
        return
    link = f"http://{address}:{port}"
    assert f"open {link} or scan" in text
    buffer = io.StringIO()
    segno.make(link, micro=False).terminal(buffer, compact=True)
    assert buffer.getvalue().splitlines() == text.replace("\r\n", "\n").split(":\n\n", 1)[1].splitlines()


def test_a_log_file_gets_no_qr_code() -> None:
    ended = run_app("serve", "--host", "0.0.0.0", "--port", "9", APP_MODEL_URL="/nowhere.pth")
    assert ended.stdout == ""
