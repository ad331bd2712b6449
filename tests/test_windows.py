r"""The parts of Windows that can be met on another system: its missing modules, encodings and paths.

Nothing here runs on Windows. The first test takes away the functions that Python does not have there, and
changes the platform's name for our modules; sockets, files and the event loop stay those of this machine.
Settings as Windows writes them are in test_settings.py, wheels for Windows in test_package.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.fetching.links import is_url
from app.settings_file import load_settings
from tests.conftest import DATA, ROOT, bears_environment, image_bytes, started

# Functions, constants and modules that Python's documentation lists as "Unix" alone, and that exist here
WITHOUT = """
import asyncio, ctypes, logging, mmap, os, signal, socket, subprocess, sys, tempfile, types

for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in ("getuid", "geteuid", "sched_getaffinity", "sysconf", "fork", "mkfifo", "setsid"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT"):
    delattr(signal, name)
del mmap.MADV_DONTNEED
duplicate, library = os.dup, ctypes.CDLL

def dup(descriptor):  # a socket is not a file there
    if "socket:" in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(9, "Bad file descriptor")
    return duplicate(descriptor)

def load(name, *arguments, **options):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    return library(name, *arguments, **options)

os.dup, ctypes.CDLL = dup, load
import app.cli, app.web.process
for name, module in [*sys.modules.items()]:
    if name.startswith("app.") and getattr(module, "sys", None) is sys and name != "app.cli":
        module.sys = types.SimpleNamespace(**{**vars(sys), "platform": "win32"})
sys.exit(app.cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_it_serves_without_what_windows_does_not_have() -> None:
    command = [sys.executable, "-c", WITHOUT, "serve", "--port", "0"]
    with started(command, **bears_environment()) as server:
        server.url = server.wait_for(r"running on (http://[\d.:]+)")[1]
        server.wait_for("ready after")
        assert server.post(image_bytes("a05_640x480.jpg")).json()["result"] == "teddys"
    assert "Traceback" not in "".join(server.lines)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "utf-8"])
def test_class_names_outside_of_the_consoles_encoding_stop_no_command(encoding: str) -> None:
    photo = str(DATA / "images" / "a05_640x480.jpg")
    classes = bears_environment(APP_CLASSES="чёрный,гризли,плюшевый", PYTHONIOENCODING=encoding)
    ended = subprocess.run(
        [sys.executable, "-m", "app", "predict", photo],
        cwd=ROOT,
        env={**os.environ, **classes},
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    label = "плюшевый" if encoding == "utf-8" else r"\u043f"
    assert label in ended.stdout.decode(encoding)


@pytest.mark.parametrize(
    "path", [r"C:\Users\me\stage-2.pth", r"\\server\share\stage-2.pth", "C:/models/x.pth"]
)
def test_a_path_of_windows_is_not_a_link(path: str, tmp_path: Path) -> None:
    assert not is_url(path)
    file = tmp_path / "settings.toml"
    file.write_bytes(f"model_url = '{path}'\r\n".encode())
    assert load_settings(file, {}).model_url.endswith(path)
