"""Real things for the tests: files that fastai wrote, servers in processes of their own, fastai itself."""

import os

# Set before torch or OpenBLAS is loaded: their idle threads spin, and the workers of pytest share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import fcntl
import importlib.util
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import PIL
import pytest
import requests

from app.errors import QueueTimeout
from app.metrics import Metrics
from app.photos.transforms import IMAGENET_MEAN, IMAGENET_STD, PipelineName, Preprocess, named_pipeline
from app.progress import Report
from app.serving.opening import open_model
from app.serving.predictor import Predictor
from app.settings import Settings
from app.types import Size

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
IMAGES = sorted((DATA / "images").iterdir())
BEARS = ("black", "grizzly", "teddys")
NEWEST_PILLOW = int(PIL.__version__.partition(".")[0]) >= 13  # it rounds otherwise
V1_CHECKPOINT = DATA / "v1" / "stage-2.pth"
ENGINES = ("auto", pytest.param("fastai", marks=pytest.mark.torch))
SECONDS = 180  # the deadline of every wait for an event; a busy machine needs a part of it

# Clocks say little on a busy machine: tests that bound work measure CPU time.
hypothesis.settings.register_profile(
    "cpu", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("cpu")


# Files that import what only requirements-dev.txt installs; where torch is missing they are not collected.
NEEDS_TORCH = {
    path
    for path in sorted(Path(__file__).parent.rglob("test_*.py"))
    if re.search(r"^(import|from) (torch|safetensors|schemathesis|sklearn)\b", path.read_text("utf-8"), re.M)
}
collect_ignore = [] if importlib.util.find_spec("torch") else [str(path) for path in NEEDS_TORCH]


def pytest_report_header() -> str:
    """Say which files are left out."""
    return f"torch is not installed: {len(collect_ignore)} files are left out" if collect_ignore else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark with `torch` every test that needs it: by a fixture, or because its file imports it."""
    for item in items:
        if item.path in NEEDS_TORCH or {"vision", "make_learner"} & set(item.fixturenames):
            item.add_marker(pytest.mark.torch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test marked `alone` while the other workers of pytest-xdist run none."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    folder = Path(item.config.option.basetemp).parent  # that of all workers
    alone = item.get_closest_marker("alone") is not None
    with (folder / "next").open("w") as queue, (folder / "running").open("w") as running:
        fcntl.flock(queue, fcntl.LOCK_EX)  # the others finish their tests and begin none
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        return (yield)


def image_bytes(name: str) -> bytes:
    """One of the 61 pictures, by its name."""
    return (DATA / "images" / name).read_bytes()


def named(
    name: PipelineName = "resize",
    size: Size = (224, 224),
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    **options: Any,
) -> Preprocess:
    """A pipeline that has a name, rounding as the installed Pillow does, which the oracles use."""
    return Preprocess(named_pipeline(name, size, **options), mean, std, newest_pillow=NEWEST_PILLOW)


def bears_environment(**more: str) -> dict[str, str]:
    """The environment in which the server serves the v1 bears."""
    pixels = {"APP_PIPELINE": "fastai1", "APP_IMAGE_SIZE": "224"}
    statistics = {"APP_MEAN": "0.485,0.456,0.406", "APP_STD": "0.229,0.224,0.225"}
    return {
        "APP_MODEL_URL": str(V1_CHECKPOINT),
        "APP_CLASSES": ",".join(BEARS),
        **pixels,
        **statistics,
        **more,
    }


def as_users_run() -> dict[str, str]:
    """The environment of the tests, without the variable that limits their own threads."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


@dataclass
class ServerProcess:
    """`python -m app serve` on a free port; `lines` is its log."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    url: str = ""
    _arriving: "queue.Queue[str | None]" = field(default_factory=queue.Queue)

    def read(self) -> None:
        """Hand on the log, line by line, until the process ends."""
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                self.lines.append(line)
                self._arriving.put(line)
        self._arriving.put(None)

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The first match in the lines that have not been waited for yet."""
        while (line := self._arriving.get(timeout=SECONDS)) is not None:
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"the server ended without logging {pattern!r}:\n" + "".join(self.lines))

    def post(self, data: bytes, name: str = "photo.jpg") -> requests.Response:
        """Upload a file as curl does; again if the machine was too busy to answer it within its deadline."""
        for _ in range(10):
            answer = requests.post(f"{self.url}/analyze", files={"file": (name, data)}, timeout=SECONDS)
            if answer.status_code != 503 or answer.json()["code"] != QueueTimeout.code:
                break
        return answer


@contextmanager
def started(command: list[str], cwd: Path = ROOT, **environment: str) -> Iterator[ServerProcess]:
    """A server process, whose log is read; it is ended on the way out."""
    process = subprocess.Popen(
        command, cwd=cwd, env={**as_users_run(), **environment}, stderr=subprocess.PIPE, text=True
    )
    server = ServerProcess(process)
    threading.Thread(target=server.read, daemon=True).start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait(SECONDS)


@contextmanager
def servers() -> Iterator[Callable[..., ServerProcess]]:
    """Start servers with their own environment and options; they are ended on the way out."""
    with ExitStack() as stack:

        def start(*options: str, module: str = "app", **environment: str) -> ServerProcess:
            command = [sys.executable, "-m", module, "serve", "--port", "0", *options]
            server = stack.enter_context(started(command, **environment))
            server.url = server.wait_for(r"running on (http://[\d.:]+)")[1]
            return server

        yield start


def retries() -> requests.adapters.Retry:
    """Until the server listens, and until it is ready."""
    return requests.adapters.Retry(
        total=60, connect=60, status=60, status_forcelist=[503], backoff_factor=0.1, backoff_max=1,
        allowed_methods=None, respect_retry_after_header=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Start servers; they are ended after the last test."""
    with servers() as start:
        yield start


@pytest.fixture(scope="session")
def bears(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A ready server of the v1 bears."""
    server = start_server(**bears_environment())
    server.wait_for("ready after")
    return server


def cpu_seconds(server: ServerProcess) -> float:
    """CPU time that a server has used (Linux only)."""
    stat = Path(f"/proc/{server.process.pid}/stat")
    if not stat.exists():
        pytest.skip("the CPU time of another process cannot be measured here")
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def peak_memory(server: ServerProcess) -> Iterator[Callable[[], int]]:
    """By how many kB the memory of a server has grown at its peak within the context (Linux only)."""
    folder = Path(f"/proc/{server.process.pid}")

    def read(name: str) -> int:
        match = re.search(rf"{name}:\s+(\d+) kB", (folder / "status").read_text())
        assert match
        return int(match[1])

    try:
        (folder / "clear_refs").write_text("5")  # the peak is now what is used now
    except OSError:
        pytest.skip("the peak of another process's memory cannot be measured here")
    before = read("VmRSS")
    yield lambda: read("VmHWM") - before


def run_app(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`python -m app ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


async def open_predictor(settings: Settings, report: Report = lambda *_: None) -> Predictor:
    """A predictor of the model that the settings name."""
    return Predictor(await open_model(settings, report), Metrics())


@pytest.fixture(scope="session")
def vision() -> Any:
    """`fastai.vision.all`: the oracle."""
    pytest.importorskip("fastai")
    from app.graphs.bodies import import_fastai

    return import_fastai()


@pytest.fixture(scope="session")
def make_learner(vision: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Make fastai v2 learners as a notebook does, untrained but for BatchNorm's statistics.

    Those are taken from the pictures, so that the probabilities are spread as a trained network's are.
    """
    import torch

    def make(architecture: str, item_transform: Any, **options: Any) -> Any:
        vision.set_seed(7)
        stats = options.pop("stats", vision.imagenet_stats)
        normalize = [vision.Normalize.from_stats(*stats)] if stats else []
        augmentations = vision.aug_transforms(size=options.pop("batch_size", None))
        photos = IMAGES[:24]
        dls = vision.ImageDataLoaders.from_lists(
            DATA,
            photos,
            [BEARS[i % 3] for i in range(len(photos))],
            item_tfms=item_transform,
            batch_tfms=[*augmentations, *normalize],
            bs=12,
            num_workers=0,
        )
        # a function of torchvision where there is one, else the name of one of timm's: as fastai's users
        # write it
        arch = getattr(vision.models, architecture, getattr(vision, architecture, architecture))
        learn = vision.vision_learner(dls, arch, pretrained=False, **options)
        learn.path = tmp_path_factory.mktemp(architecture)
        with torch.no_grad():
            norms = [m for m in learn.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
            for norm in norms:
                norm.momentum = None  # the plain average over all batches
            learn.model.train()
            for _ in range(2):
                for pixels, _labels in dls.train:
                    learn.model(pixels)
        learn.model.eval()
        return learn

    return make


@pytest.fixture(scope="session")
def v1_predictions() -> dict[str, np.ndarray]:
    """What fastai 1.0.50's own `predict` answered, by picture: (3,) probabilities."""
    stored = json.loads((DATA / "v1" / "predictions.json").read_text())
    return {name: np.array(row["probs"], np.float32) for name, row in stored.items()}
