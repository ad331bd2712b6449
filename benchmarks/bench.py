"""How fast and how small: this server beside the obvious one (naive.py) and a plain engine, in one run.

    make bench     or     python benchmarks/bench.py [--architecture resnet34] [--turns 3] [--seconds 4]

All in turn (ours, ours in int8, naive, engine, ours ...) on the same network and pictures, on loopback;
medians of the turns. "The engine" is ONNX Runtime with the plain file of torch.onnx.export. The ratios hold
on a busy machine too; absolute figures need a quiet one: the report names its load.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = {
    "224 px": "a00_224x224.jpg",
    "1024 px": "a12_1024x768.jpg",
    "12 MP": "b00_12mp_4000x3000.jpg",
}
CONNECTIONS = (1, 8, 32)
OVERLOAD = 80.0  # requests a second: several times what two cores answer
QUICK = 0.003  # seconds per millisecond: an answer in three times the usual is a quick one
START_SECONDS = 120  # a server that has not answered by then never will
# By architecture: the p50 of one client, and the rate with eight, to naive; both at 224 px.
AGAINST_NAIVE = {"resnet34": (0.72, 1.7), "tf_efficientnet_lite0": (0.55, 2.0)}
Figures = dict[str, dict[str, float]]  # by who answered: seconds, milliseconds, megabytes by name
TICKS = os.sysconf("SC_CLK_TCK")
# Developers' machines may forbid to keep what Python compiles: 100 ms more for each start, and for no user.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Server:
    """A server process, measured from outside."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], port: int) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._start = lambda: subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            cwd=ROOT,
            env=ENVIRONMENT | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, photo: Path, expected: str) -> float:
        """Start it and ask until the first right answer. Returns the seconds that this took."""
        begin = time.perf_counter()
        self._process = self._start()
        request = urllib.request.Request(
            f"{self.url}/analyze", _form(photo), {"Content-Type": "multipart/form-data; boundary=b"}
        )
        while time.perf_counter() < begin + START_SECONDS:
            try:
                with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                    result = json.load(answer)["result"]
            except OSError:  # it does not listen yet, or is not ready yet
                time.sleep(0.05)  # each try takes from the time that the start needs
                continue
            if result != expected:
                raise SystemExit(f"{self.name} answers {result}, expected {expected}")
            return time.perf_counter() - begin
        raise SystemExit(f"{self.name} did not answer within {START_SECONDS} s")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _tree(self) -> list[int]:
        """The process and its descendants."""
        pids = [self._process.pid] if self._process else []
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids.extend(map(int, task.read_text().split()))
        return pids

    def memory(self) -> float:
        """MB of the tree: pages shared with others count by their share (PSS)."""
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._tree()]
        return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / 1000

    def cpu(self) -> float:
        """Seconds of processor time that the tree has used."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self._tree()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICKS


class Peak:
    """The most memory that a server had while the block ran, looked at twice a second: it costs the kernel a
    walk through all pages.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._stop = server, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.megabytes = 0.0

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.megabytes = max(self.megabytes, self._server.memory())

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _form(photo: Path) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n\r\n'
    return head + photo.read_bytes() + b"\r\n--b--\r\n"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def under_load(server: Server, photo: Path, expected: str, *options: str) -> dict[str, float]:
    """One turn of load.py against a server: its figures."""
    cpu = server.cpu()
    command = [sys.executable, str(HERE / "load.py"), server.url, str(photo), *options]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    answers = result["answers"]
    times = sorted(answers.get("200", []))
    if not times or json.loads(result["sample"])["result"] != expected:
        raise SystemExit(f"{server.name} gave no right answer: {result['sample'] or answers.keys()}")
    refused = sorted(answers.get("503", []))
    lost = sum(len(rows) for status, rows in answers.items() if status not in ("200", "503"))
    return {
        **{f"p{share} ms": 1000 * times[len(times) * share // 100] for share in (50, 95, 99)},
        "rate": len(times) / result["seconds"],
        "cpu ms": 1000 * (server.cpu() - cpu) / len(times),
        "refused": len(refused),
        "refused p99 ms": 1000 * refused[len(refused) * 99 // 100] if refused else 0.0,
        "lost": lost,
        "recovery s": result["recovery"],
    }


def engine_alone(folder: Path, architecture: str, photo: Path, seconds: float) -> dict[str, float]:
    """The limit, without HTTP: the plain ONNX file that torch exports. Beside it our engine, in turn, in the
    same process with the same options; and decoding.
    """
    sys.path.insert(0, str(ROOT))
    from app.checkpoints.reader import read_checkpoint
    from app.engines.contract import fitted
    from app.engines.onnx_runtime import GraphEngine
    from app.engines.sessions import file_session
    from app.graphs.graph import find_graph
    from app.photos.decode import decode
    from app.photos.transforms import Preprocess

    arrays = read_checkpoint(folder / "stage-2.pth").arrays
    engine = GraphEngine(fitted(find_graph(arrays, architecture), arrays))
    plain = file_session(folder / "plain.onnx")
    (given,) = plain.get_inputs()
    preprocess, data = Preprocess(), photo.read_bytes()
    pixels = preprocess(decode(data))
    parts: dict[str, Callable[[], object]] = {
        "engine ms": lambda: plain.run(None, {given.name: pixels[None]}),
        "ours ms": lambda: engine.run([pixels]),
        "decode ms": lambda: preprocess(decode(data)),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, work in parts.items():
            start = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - start))
    ratios = [ours / its for ours, its in zip(times["ours ms"], times["engine ms"], strict=True)]
    medians = {name: statistics.median(its) for name, its in times.items()}
    rate = 1000 / medians["engine ms"]
    return {**medians, "engine rate": rate, "ours / plain": statistics.median(ratios)}


def in_turn(turns: int, parts: Mapping[str, Callable[[], dict[str, float]]]) -> Figures:
    """Each part in its turn, several times over. Returns the medians by part."""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(turns):
        for name, part in parts.items():
            rows[name].append(part())
    return {
        name: {key: statistics.median(row[key] for row in its) for key in its[0]}
        for name, its in rows.items()
    }


def measure(servers: list[Server], folder: Path, turns: int, seconds: float) -> Iterator[tuple[str, Figures]]:
    """Everything, in turn: each time what was asked for, and the figures by who answered."""
    answers = json.loads((folder / "answers.json").read_text())
    photos = {name: ROOT / "tests" / "data" / "images" / file for name, file in PICTURES.items()}
    expected = {name: answers[file]["result"] for name, file in PICTURES.items()}

    def start(server: Server) -> dict[str, float]:
        server.stop()
        started = server.start(photos["224 px"], expected["224 px"])
        return {"s": started, "idle MB": server.memory()}

    def load(server: Server, picture: str, *options: str) -> dict[str, float]:
        with Peak(server) as peak:
            row = under_load(server, photos[picture], expected[picture], *options)
        return {**row, "peak MB": peak.megabytes}

    def bare(picture: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--engine", str(photos[picture]), "--folder", str(folder.parent)]
        options = ["--architecture", folder.name, "--seconds", str(seconds)]
        run = subprocess.run([*command, *options], check=True, capture_output=True)
        return json.loads(run.stdout)  # type: ignore[no-any-return]

    yield "start", in_turn(turns, {server.name: partial(start, server) for server in servers})
    quick = dict.fromkeys(
        (server.name for server in servers), 0.0
    )  # seconds of an answer when all is as usual
    cells = [(picture, connections) for picture in PICTURES for connections in CONNECTIONS]
    for picture, connections in cells:
        options = ("--connections", str(connections), "--seconds", str(seconds))
        parts = {server.name: partial(load, server, picture, *options) for server in servers}
        row = in_turn(turns, {**parts, "engine": partial(bare, picture)})
        yield f"{picture}, {connections} at once", row
        if (picture, connections) == ("224 px", 1):
            quick = {name: QUICK * row[name]["p50 ms"] for name in quick}
    options = ("--rate", str(OVERLOAD), "--seconds", str(seconds))
    parts = {
        server.name: partial(load, server, "224 px", *options, "--quick", str(quick[server.name]))
        for server in servers
    }
    yield f"224 px, {OVERLOAD:.0f}/s", in_turn(turns, parts)


# --- what is printed ----------------------------------------------------------------------------------------


def bars(figures: dict[str, Figures], architecture: str, vnni: bool) -> list[tuple[str, float, float, str]]:
    """What is promised: its name, what was found, the bar, and whether it must be "<=" or ">=" that.

    In int8 more is promised of processors that have instructions for it (VNNI).
    """

    def ratio(name: str, key: str, who: str = "ours") -> float:
        return figures[name][who][key] / figures[name]["naive"][key]

    alone, eight = "224 px, 1 at once", "224 px, 8 at once"
    engine, overload = figures[alone]["engine"], figures[f"224 px, {OVERLOAD:.0f}/s"]["ours"]
    beside = figures[alone]["ours"]["p50 ms"] / (engine["engine ms"] + engine["decode ms"])
    slowest, fewest = AGAINST_NAIVE.get(architecture, (1.0, 1.0))
    found = [
        ("our graph, 224 px: to the plain ONNX file", engine["ours / plain"], 1.05, "<="),
        ("p50, one client, 224 px: to naive", ratio(alone, "p50 ms"), slowest, "<="),
        ("p50, one client, 224 px: to the plain file + decoding", beside, 1.1, "<="),
        ("p50, one client, 12 MP: to naive", ratio("12 MP, 1 at once", "p50 ms"), 0.85, "<="),
        (f"rate, {eight}: to naive", ratio(eight, "rate"), fewest, ">="),
    ]
    for name in (eight, "224 px, 32 at once"):
        share = figures[name]["ours"]["rate"] / figures[name]["engine"]["engine rate"]
        found.append((f"rate, {name}: to the plain file", share, 0.92, ">="))
    if "int8" in figures[alone]:
        found.append(
            (f"int8: rate, {eight}: to naive", ratio(eight, "rate", "int8"), 4.5 if vnni else 2.0, ">=")
        )
    return [
        *found,
        ("first right answer after the start: to naive", ratio("start", "s"), 0.11, "<="),
        ("idle memory: to naive", ratio("start", "idle MB"), 0.4, "<="),
        ("peak memory, 32 clients, 12 MP: to naive", ratio("12 MP, 32 at once", "peak MB"), 0.4, "<="),
        ("p99 of what is accepted in overload, ms", overload["p99 ms"], 2000, "<="),
        ("lost in overload", overload["lost"], 0, "<="),
        ("first quick answer after the overload, s", overload["recovery s"], 1.0, "<="),
    ]


def report(figures: dict[str, Figures], architecture: str, vnni: bool) -> str:
    """Two tables in Markdown: every figure, and what is promised."""
    start = figures["start"]
    rows = ["| | | first answer | idle |", "|---|---|---|---|"]
    rows += [f"| start | {who} | {row['s']:.2f} s | {row['idle MB']:.0f} MB |" for who, row in start.items()]
    rows += ["", "| load | who | p50 | p95 | p99 ms | answers/s | CPU ms | peak MB | refused, lost |"]
    rows += ["|---|---|---|---|---|---|---|---|---|"]
    for name, row in figures.items():
        for who, its in row.items():
            if "p50 ms" in its:
                times = " | ".join(f"{its[f'p{share} ms']:.0f}" for share in (50, 95, 99))
                rest = f"{its['rate']:.1f} | {its['cpu ms']:.0f} | {its['peak MB']:.0f}"
                rows.append(
                    f"| {name} | {who} | {times} | {rest} | {its['refused']:.0f}, {its['lost']:.0f} |"
                )
            elif who == "engine":
                times = f"{its['engine ms']:.0f} + {its['decode ms']:.0f} | | "
                rows.append(f"| {name} | {who} + decode | {times}| {its['engine rate']:.1f} | | | |")
    rows += ["", "| promised | found | bar | |", "|---|---|---|---|"]
    for name, value, bar, sign in bars(figures, architecture, vnni):
        kept = value <= bar if sign == "<=" else value >= bar
        rows.append(f"| {name} | {value:.2f} | {sign} {bar:g} | {'kept' if kept else 'missed'} |")
    return "\n".join(rows)


def machine() -> dict[str, Any]:
    """On what, when, and how busy it was."""
    about = dict(
        line.split("\t", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if "\t" in line
    )
    flags = about.get("flags", "").split()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": about.get("model name", "").strip("\t: ") or platform.machine(),
        "instructions": " ".join(flag for flag in flags if flag.startswith("avx")),
        "cores": len(os.sched_getaffinity(0)),
        "load average before": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load, in each turn")
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fastai-now-bench")
    parser.add_argument("--engine", type=Path, metavar="PHOTO", help=argparse.SUPPRESS)  # a part of the run
    parser.add_argument("--architecture", default="resnet34")
    options = parser.parse_args()
    folder = options.folder / options.architecture
    if options.engine:
        print(json.dumps(engine_alone(folder, options.architecture, options.engine, options.seconds)))
        return
    folder.mkdir(exist_ok=True, parents=True)
    if not all((folder / name).exists() for name in ("answers.json", "proof.json", "plain.onnx")):
        print(f"fastai makes the {options.architecture} (once)", file=sys.stderr)
        command = [sys.executable, str(HERE / "naive.py"), "--make", str(folder)]
        subprocess.run([*command, "--architecture", options.architecture], check=True)
    about = machine()
    environment = {
        "APP_MODEL_URL": str(folder / "stage-2.pth"),
        "APP_CLASSES": "black,grizzly,teddys",
        "APP_ARCHITECTURE": options.architecture,
    }
    quick = {
        "APP_PRECISION": "int8",
        "APP_PROOF_URL": str(folder / "proof.json"),
        "APP_EXIF": "ignore",
    }
    servers = [
        Server("ours", ["-m", "app", "serve"], environment, free_port()),
        Server("int8", ["-m", "app", "serve"], {**environment, **quick}, free_port()),
        Server("naive", [str(HERE / "naive.py"), str(folder / "export.pkl")], {}, free_port()),
    ]
    description = ROOT / "app" / "graphs" / "data" / f"{options.architecture}.json"
    if "int8" not in json.loads(description.read_text()):
        servers = [server for server in servers if server.name != "int8"]
    figures: dict[str, Figures] = {}
    try:
        for name, row in measure(servers, folder, options.turns, options.seconds):
            print(name, file=sys.stderr)
            figures[name] = row
            options.json.write_text(json.dumps({"machine": about, "figures": figures}, indent=1) + "\n")
    finally:
        for server in servers:
            server.stop()
    print(
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "\n",
        report(figures, options.architecture, "vnni" in about["instructions"]),
        sep="\n",
    )


if __name__ == "__main__":
    main()
