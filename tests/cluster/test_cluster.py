"""A cluster of one machine, by its commands: answers, links, replicas that die, ports, and its end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT, SECONDS, ServerProcess, started
from tests.http_client import assert_problem
from tests.web.test_applications import GARMENT_SETTINGS, PHOTO, write

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-cluster.txt")
pytestmark = [pytest.mark.alone, pytest.mark.slow]  # Ray gives a node 30 s to start

TABLES = """
[models.garments.v1]
[models.garments.v2]
unsure_below = 1.0

[applications.garments]
model = "garments"
version = "v1"
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Cluster:
    """A running front, with the folder of its node and its settings file."""

    def __init__(self, server: ServerProcess, folder: Path, file: Path) -> None:
        self.server, self.folder, self.file = server, folder, file

    def run(self, command: str, *options: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "app", command, "--folder", str(self.folder), *options]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)

    def apply(self, text: str) -> "subprocess.CompletedProcess[str]":
        write(self.file, text)
        return self.run("apply", "--settings", str(self.file))

    def ask(self, query: str = "") -> requests.Response:
        headers = {"content-type": "image/jpeg"}
        url = f"{self.server.url}/garments/analyze{query}"
        return requests.post(url, PHOTO, headers=headers, timeout=SECONDS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    base = Path(tempfile.mkdtemp(prefix="c"))  # short: Ray's sockets lie below it
    file, folder = write(base / "settings.toml", GARMENT_SETTINGS + TABLES), base / "n"
    command = [sys.executable, "-m", "app", "cluster", "--settings", str(file), "--port", "0"]
    command += ["--node-port", str(free_port()), "--folder", str(folder)]
    with started(command) as server:
        server.url = server.wait_for(r"running on (http://[\d.:]+)")[1]
        yield Cluster(server, folder, file)
    shutil.rmtree(base)


@contextmanager
def load(cluster: Cluster, clients: int = 2) -> Iterator[Counter[Any]]:
    """Ask without a pause while the context lasts; counts the answers by status and version."""
    seen, stop = Counter[Any](), threading.Event()

    def client(number: int) -> None:
        with requests.Session() as session:
            for count in range(1_000_000):
                photo = PHOTO + f"{number} {count}".encode()
                answer = session.post(
                    f"{cluster.server.url}/garments/analyze", files={"file": photo}, timeout=SECONDS
                )
                seen[answer.status_code, answer.headers.get("x-model")] += 1
                if stop.is_set() or answer.headers.get("connection") == "close":
                    return

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(client, number) for number in range(clients)]
        while not seen:
            threading.Event().wait(0.01)
        try:
            yield seen
        finally:
            stop.set()
        for each in asking:
            each.result(SECONDS)


def test_answers_are_those_of_a_server_alone(cluster: Cluster, tmp_path: Path) -> None:
    file = write(tmp_path / "alone.toml", GARMENT_SETTINGS)
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    command = [
        sys.executable,
        "-m",
        "app",
        "predict",
        "--json",
        "--settings",
        str(file),
        str(tmp_path / "photo.jpg"),
    ]
    alone = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    answer = cluster.ask()
    assert answer.headers["x-model"] == "garments/v1"
    assert {"file": alone["file"], **answer.json()} == alone
    assert cluster.ask("?version=v2").json()["unsure"]
    for path, status, code in (
        ("analyze?version=v9", 400, "unknown-version"),
        ("explain?label=none", 400, "unknown-label"),
    ):
        url = f"{cluster.server.url}/garments/{path}"
        assert_problem(requests.post(url, files={"file": PHOTO}, timeout=SECONDS), status, code)
    url = f"{cluster.server.url}/garments/analyze"
    assert_problem(requests.post(url, files={"file": b"none"}, timeout=SECONDS), 415, "unrecognised-image")
    model = requests.get(f"{cluster.server.url}/garments/model", timeout=SECONDS).json()
    assert model["architecture"] == "tf_efficientnet_lite0"


def test_apply_relinks_under_load_and_loses_no_request(cluster: Cluster) -> None:
    with load(cluster) as seen:
        text = GARMENT_SETTINGS + TABLES
        run = cluster.apply(text.replace('version = "v1"', 'version = "v2"'))
        assert run.returncode == 0, run.stderr
        while not seen[200, "garments/v2"]:
            threading.Event().wait(0.01)
    assert seen.keys() == {(200, "garments/v1"), (200, "garments/v2")}
    found = json.loads(cluster.run("status", "--json").stdout)
    assert found["applications"]["garments"]["version"] == "v2"
    assert found["versions"]["garments/v2"]["replicas"] == {"RUNNING": 1}
    assert found["machines"] == ["127.0.0.1"]
    assert "/garments/ -> garments/v2" in cluster.run("status").stdout


def test_a_version_that_cannot_be_opened_changes_no_link(cluster: Cluster) -> None:
    text = (GARMENT_SETTINGS + TABLES).replace("unsure_below = 1.0", 'classes = ["one", "two"]')
    run = cluster.apply(text.replace('version = "v1"', 'version = "v2"'))
    assert (run.returncode, "error: " in run.stderr.splitlines()[-1]) == (1, True)
    assert cluster.ask().headers["x-model"] == "garments/v2"


def test_photos_are_answered_though_the_only_replica_is_killed(cluster: Cluster) -> None:
    processes = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    replicas = re.findall(r"(\d+) ray::ServeReplica:garments-v2", processes)
    replicas = [pid for pid in replicas if str(cluster.folder) in Path(f"/proc/{pid}/environ").read_text()]
    assert replicas
    with load(cluster) as seen:
        for pid in replicas:
            os.kill(int(pid), signal.SIGKILL)
        before = sum(seen.values())
        while sum(seen.values()) < before + 10:
            threading.Event().wait(0.01)
    assert seen.keys() == {(200, "garments/v2")}


def test_no_port_of_ray_answers_without_the_token(cluster: Cluster) -> None:
    grpc = pytest.importorskip("grpc")
    if not shutil.which("ss"):
        pytest.skip("ss is not installed")
    family = [str(cluster.server.process.pid)]
    table = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    environ = {pid: _environment(pid) for pid in set(re.findall(r"pid=(\d+)", table))}
    family += [pid for pid, text in environ.items() if str(cluster.folder) in text]
    ports = {
        int(line.split()[3].rpartition(":")[2])
        for line in table.splitlines()
        if set(re.findall(r"pid=(\d+)", line)) & set(family)
    } - {int(cluster.server.url.rpartition(":")[2])}
    assert len(ports) >= 5
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in (
                "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
                "/ray.serve.ASGIService/HandleRequest",
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(method)(b"", timeout=2)
                assert refused.value.code().name in (  # others speak HTTP, or no protocol of this kind
                    *("UNAUTHENTICATED", "UNAVAILABLE", "UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED"),
                    *("UNIMPLEMENTED", "PERMISSION_DENIED"),
                ), (port, refused.value)


def _environment(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""


def test_a_second_node_in_the_same_folder_is_refused(cluster: Cluster) -> None:
    run = cluster.run("cluster", "--settings", str(cluster.file))
    assert (run.returncode, "runs here already" in run.stderr) == (1, True)


def test_stop_answers_what_is_under_way_and_ends_all_processes(cluster: Cluster) -> None:
    with load(cluster) as seen:
        run = cluster.run("stop")
        assert run.returncode == 0, run.stderr
    assert {status for status, _ in seen} == {200}
    assert cluster.server.process.wait(SECONDS) == 0
    alive = [
        pid for pid in os.listdir("/proc") if pid.isdecimal() and str(cluster.folder) in _environment(pid)
    ]
    assert alive == []
    run = cluster.run("status")
    assert (run.returncode, "No cluster runs" in run.stderr) == (1, True)
