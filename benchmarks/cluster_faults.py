"""Faults of a cluster of two machines, under load, and the answers lost: the table in docs/cluster.md.

The two machines are network namespaces of this one, so the script needs root, `ip` and `unshare` on Linux,
and requirements-cluster.txt:

    python benchmarks/cluster_faults.py
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
MACHINES = {"fn1": "10.77.0.1", "fn2": "10.77.0.2"}
PORT = 8000
START_SECONDS = 400
SETTINGS = f"""
model_url = "{ROOT / "app" / "models" / "stage-2.pth"}"
classes = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]
architecture = "tf_efficientnet_lite0"
[models.garments.v1]
replicas = [3, 3]
[models.garments.v2]
replicas = [0, 2]
[applications.garments]
model = "garments"
version = "v1"
"""
# a client in a namespace: no pause, a new photo each time; prints a line for each answer
CLIENT = """
import sys, time, requests
url, seconds, photo = sys.argv[1], float(sys.argv[2]), open(sys.argv[3], "rb").read()
end, session = time.monotonic() + seconds, requests.Session()
number = 0
while time.monotonic() < end:
    number += 1
    start, status, close = time.monotonic(), "lost", False
    try:
        body = photo + f"{sys.argv[4]} {number}".encode()
        answer = session.post(url, body, headers={"content-type": "image/jpeg"}, timeout=60)
        status, close = answer.status_code, answer.headers.get("connection") == "close"
    except requests.RequestException:
        pass
    print(status, time.monotonic() - start, flush=True)
    if close:
        break
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    for name in MACHINES:
        ip("netns", "add", name)
    try:
        ip("link", "add", "v1", "netns", "fn1", "type", "veth", "peer", "name", "v2", "netns", "fn2")
        for number, (name, address) in enumerate(MACHINES.items(), 1):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"v{number}")
            for device in (f"v{number}", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in MACHINES:
            kill(name)
            ip("netns", "del", name)


def pids(name: str) -> list[str]:
    """The processes of a machine."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def kill(name: str, kind: str = "") -> None:
    """Kill the processes of a machine whose command line begins with `kind`."""
    for pid in pids(name):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(kind.encode()):
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def app(name: str, *words: str) -> list[str]:
    """A command of the product on a machine."""
    return ["ip", "netns", "exec", name, sys.executable, "-m", "app", *words]


@contextmanager
def machine(name: str, folder: Path, *words: str) -> Iterator[None]:
    """A machine of the cluster, once it answers; in a namespace of processes of its own."""
    log = folder.with_suffix(".log")
    command = app(name, "cluster", "--node", MACHINES[name], "--host", "0.0.0.0", "--port", str(PORT))
    command[4:4] = ["unshare", "--fork", "--pid", "--mount-proc"] if name == "fn2" else []
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--folder", str(folder), *words], cwd=ROOT, stderr=out)
    deadline = time.monotonic() + START_SECONDS
    while "ready after" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def under_load(name: str, seconds: float, event: Callable[[], object], clients: int = 2) -> str:
    """Ask a machine while `event` happens; return the answers lost, and the slowest one."""
    photo = str(ROOT / "app" / "samples" / "dress.jpg")
    command = ["ip", "netns", "exec", name, sys.executable, "-c", CLIENT]
    command += [f"http://127.0.0.1:{PORT}/garments/analyze", str(seconds), photo]
    asking = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(clients)
    ]
    time.sleep(min(4.0, seconds / 3))
    event()
    lines = [line.split() for each in asking for line in each.communicate()[0].splitlines()]
    statuses = Counter(status for status, _ in lines)
    lost = sum(count for status, count in statuses.items() if status != "200")
    return f"{lost} of {len(lines):,} | {max(float(took) for _, took in lines):.1f} s"


def main() -> None:
    base = Path(tempfile.mkdtemp(prefix="fn"))
    file = base / "settings.toml"
    file.write_text(SETTINGS)
    one, two = base / "1", base / "2"
    rows: list[str] = []

    def row(what: str, result: str) -> None:
        rows.append(f"| {what} | {result} |")
        print(rows[-1], flush=True)

    def apply() -> None:
        file.write_text(SETTINGS.replace("[3, 3]", "[3, 3]\nunsure_below = 0.1"))
        subprocess.run(
            app("fn1", "apply", "--settings", str(file), "--folder", str(one)), cwd=ROOT, check=True
        )

    def kill_replicas() -> None:
        for name in MACHINES:
            kill(name, "ray::ServeReplica:garments-v1")

    def stop() -> None:
        start = time.monotonic()
        subprocess.run(app("fn1", "stop", "--folder", str(one)), cwd=ROOT, check=True)
        print(f"all processes had ended after {time.monotonic() - start:.1f} s", flush=True)

    print("| event | answers lost | slowest answer |\n|---|---|---|")
    with network(), ExitStack() as stack:
        stack.enter_context(machine("fn1", one, "--settings", str(file)))
        stack.enter_context(
            machine("fn2", two, "--join", MACHINES["fn1"], "--token-file", str(one / "token"))
        )
        row("`apply` with another version, asked at machine 2", under_load("fn2", 45, apply))
        row("`kill -9` of all replicas, asked at machine 1", under_load("fn1", 30, kill_replicas))
        row(
            "`kill -9` of all processes of machine 2, asked at machine 1",
            under_load("fn1", 25, lambda: kill("fn2")),
        )
        row("`stop` of machine 1", under_load("fn1", 8, stop))


if __name__ == "__main__":
    main()
