"""The Ray node of this machine: a child process with safe defaults, and the folder that describes it.

Does not import Ray. Its ports speak pickle, so every one of them asks for the token of the cluster.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.errors import StartupError, ToolMissing

OBJECT_STORE: Final = 80_000_000  # bytes of shared memory, Ray's least; photos go through it one by one
LEAST_TOKEN: Final = 32  # characters
START_SECONDS: Final = 180.0  # for a node to start: 5 on an idle machine, minutes on a busy one
STOP_SECONDS: Final = 5.0  # for its processes to end by themselves
ROOT: Final = Path(__file__).parent.parent.parent
# Ray's defaults otherwise: no authentication, statistics to its makers, 60 s until nodes end without a head
ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_SERVE_DISABLE_SHUTDOWN_ON_EXIT": "1",
}


class NodeFolder:
    """The folder of a node: its token, the address of its cluster, and the processes to end."""

    def __init__(self, path: Path | None = None) -> None:
        """Take a folder, or by default one of this user among the temporary files."""
        self.path = path or Path(tempfile.gettempdir()) / f"fastai-now-{os.getuid()}"

    def make(self) -> None:
        """Make the folder for this user alone. Raises StartupError if another one owns it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = self.path.stat()
        if about.st_uid != os.getuid() or about.st_mode & 0o077:
            raise StartupError(f"{self.path} must belong to you alone: remove it, or name another --folder.")

    def read(self, name: str) -> str:
        """Return the text of a file, "" if there is none."""
        with contextlib.suppress(OSError):
            return (self.path / name).read_text("utf-8").strip()
        return ""

    def write(self, name: str, text: str) -> None:
        """Write a file that only this user can read."""
        file = self.path / name
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write(text)

    def take_token(self, file: Path | None) -> None:
        """Keep the token of a file; without one, that of the folder, or a new one. Raises StartupError."""
        try:
            token = file.read_text("utf-8").strip() if file else self.read("token")
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"The token cannot be read from {file}: {error}.") from error
        if file and len(token) < LEAST_TOKEN:
            raise StartupError(f"{file} holds no token: copy the file `token` from the head's folder.")
        self.write("token", token or secrets.token_hex(32))

    def set_environment(self, host: str) -> None:
        """Set the variables that Ray reads when it is imported, in this process and its children.

        Ray replaces a loopback `host` by another address of the machine unless it is told that there is one
        machine only (services.get_node_ip_address in Ray 2.60).
        """
        alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if host.startswith("127.") else {}
        token = {"RAY_AUTH_TOKEN_PATH": str(self.path / "token")}
        os.environ.update({**ENVIRONMENT, **alone, **token, "PYTHONPATH": str(ROOT)})

    def find(self) -> str:
        """Return the address of the cluster whose node runs here, and set the environment for it.

        Raises StartupError if no node runs here.
        """
        if not alive(self.read("front.pid")) and not alive(self.read("ray.pid")):
            raise StartupError("No cluster runs on this machine: start one with `python -m app cluster`.")
        self.set_environment(self.node)
        return self.read("address")

    @property
    def node(self) -> str:
        """The address of this machine in the cluster."""
        return self.read("node")


@contextlib.contextmanager
def running_node(folder: NodeFolder, host: str, join: str, port: int) -> Iterator[str]:
    """Run a Ray node: the head at `host`, or one that joins the head at `join`; yield the cluster's address.

    Raises StartupError. All processes of the node have ended on the way out.
    """
    if alive(folder.read("front.pid")):
        raise StartupError("A node of a cluster runs here already: `python -m app stop` ends it.")
    address = f"{join or host}:{port}"
    options = [
        *("--block", "--node-ip-address", host, "--disable-usage-stats", "--include-log-monitor", "false"),
        *("--object-store-memory", str(OBJECT_STORE)),
        *(
            ("--address", address)
            if join
            else ("--head", "--port", str(port), "--include-dashboard", "false")
        ),
        *(() if join else ("--temp-dir", str(folder.path / "ray"))),
    ]
    log = (folder.path / "node.log").open("wb")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    with log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter, with addresses of the command line
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    folder.write("ray.pid", str(process.pid))
    folder.write("front.pid", str(os.getpid()))
    folder.write("address", address)
    folder.write("node", host)
    try:
        _wait(process, folder)
        yield address
    finally:
        end(process.pid)
        process.wait()
        for name in ("ray.pid", "front.pid", "address", "node"):
            (folder.path / name).unlink(missing_ok=True)


def _wait(process: "subprocess.Popen[bytes]", folder: NodeFolder) -> None:
    """Wait until the node runs. Raises StartupError with the last line of its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        text = folder.read("node.log")
        if "Ray runtime started" in text:
            return
        if "No module named" in text:
            raise ToolMissing("Ray is missing: pip install -r requirements-cluster.txt")
        time.sleep(0.1)
    if process.poll() is None:
        raise StartupError(
            f"The Ray node did not start within {START_SECONDS:.0f} s: is the machine too busy?"
        )
    lines = folder.read("node.log").splitlines() or ["it wrote nothing"]
    raise StartupError(
        f"The Ray node did not start: {lines[-1][:300]} ({folder.path / 'node.log'} has more)."
    )


def end(leader: int) -> None:
    """End a node and all of its processes: ask first, kill what is left after STOP_SECONDS.

    Ray's workers leave the process group of the node, so all processes below it are noted first.
    """
    family = [leader, *_below(leader)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(alive(str(pid)) for pid in family):
        time.sleep(0.1)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _below(leader: int) -> list[int]:
    """Return the processes that a process has started, and those that they have (Linux)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, todo = list[int](), [leader]
    while todo:
        parent = todo.pop()
        children = [pid for pid, above in parents.items() if above == parent]
        found += children
        todo += children
    return found


def alive(pid: str) -> bool:
    """Return whether a process runs, and is not a zombie."""
    if not pid.isdecimal():
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
