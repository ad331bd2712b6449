"""The image: built from the Dockerfile as it is, and run as hosts run it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.commands.now import stage
from app.settings_file import SETTINGS_FILE, load_settings
from tests.conftest import BEARS, ROOT, V1_CHECKPOINT, bears_environment
from tests.containers import (
    BASE,
    build,
    fetch_wheels,
    image,
    make_base_image,
    podman,
    running,
    skip_without_tools,
)
from tests.http_server import send, serving

pytestmark = pytest.mark.deploy
LIMIT = 512 * 1024 * 1024  # bytes of memory of the smallest free plans
PHOTOS = sorted((ROOT / "app" / "samples").glob("*.jpg"))
ANALYZE = "http://127.0.0.1:8080/analyze"


@pytest.fixture(scope="session")
def built() -> Callable[..., str]:
    """Build a folder's Dockerfile: the tag of the image."""
    skip_without_tools()
    make_base_image()
    fetch_wheels()

    def make(folder: Path, name: str, *options: str) -> str:
        tag = f"localhost/fastai-now:{name}"
        build(folder, tag, *options)
        return tag

    return make


@pytest.fixture(scope="session")
def demo(built: Callable[..., str]) -> str:
    """The image of the project as it is."""
    return built(ROOT, "demo")


def scores(answer: dict[str, Any]) -> list[float]:
    """The probabilities of the bears in an answer, in their order."""
    found = {row["label"]: row["score"] for row in answer["predictions"]}
    return [found[name] for name in BEARS]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")  # one of requirements-dev.txt
    ended = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_image_describes_itself_and_how_it_runs(demo: str) -> None:
    described = image(demo)
    config = described["Config"]
    assert config["User"] == "1000"
    assert config["Cmd"] == ["python", "-m", "app", "serve", "--host", "0.0.0.0"]
    assert described["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert {"title", "description", "licenses"} <= {
        name.removeprefix("org.opencontainers.image.") for name in config["Labels"]
    }


def test_the_image_is_small_and_holds_only_the_server(demo: str) -> None:
    # above the base image, which is a stand-in here: another 150 MB, and it is 350 MB in all
    assert image(demo)["Size"] - image(BASE)["Size"] < 200_000_000
    with running(demo) as container:
        container.wait_for("ready after")
        inside = podman("exec", container.name, "sh", "-c", "ls /srv /srv/app/models; pip list")
    assert inside.split()[:4] == ["/srv:", "LICENSE", "app", "/srv/app/models:"]
    assert "stage-2.pth" in inside
    packages = set(re.findall(r"^(\S+) +\d", inside, re.M))
    assert "onnxruntime" in packages
    assert not packages & {"torch", "fastai", "timm", "onnx", "pytest"}


@pytest.mark.fault("P04")
def test_it_runs_for_a_user_without_rights_on_a_read_only_root_in_512_mb(demo: str) -> None:
    with running(demo) as container:
        container.wait_for("ready after")
        for photo in PHOTOS:  # each has the name of its label in the data set
            assert container.curl("-F", f"file=@{photo}", ANALYZE).startswith(f'{{"result":"{photo.stem}"')
        podman("healthcheck", "run", container.name)
        limit = podman("inspect", container.name, "--format", "{{.HostConfig.Memory}}")
        status, written = podman(
            "exec", container.name, "sh", "-c", "cat /proc/1/status; echo +; touch /srv/x 2>&1 || true"
        ).split("+")
    assert int(limit) == LIMIT
    assert "Uid:\t1000\t1000" in status
    assert "Read-only file system" in written
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)
    assert peak
    assert int(peak[1]) * 1024 < LIMIT / 2  # half of it is for larger models and photos


def test_sigterm_ends_it_with_exit_code_0(demo: str) -> None:
    with running(demo) as container:
        container.wait_for("ready after")
    assert container.process.returncode == 0
    assert any("Application shutdown complete" in line for line in container.lines)


def test_it_listens_where_port_says_and_is_unhealthy_where_nothing_answers(demo: str) -> None:
    health = image(demo)["Healthcheck"]["Test"][1:]
    with running(demo, "--env", "PORT=9000") as container:
        container.wait_for("ready after")
        assert container.curl("http://127.0.0.1:9000/healthz") == '{"status":"ok"}'
        podman("exec", container.name, *health)
        with pytest.raises(AssertionError, match="ConnectionRefusedError"):
            podman("exec", "--env", "PORT=9001", container.name, *health)


def test_nothing_is_compiled_at_start(demo: str) -> None:
    with running(demo, "--env", "PYTHONVERBOSE=1") as container:
        container.wait_for("ready after")
    imported = re.findall(r"code object from '(.*)'", "".join(container.lines))
    assert len(imported) > 400
    assert [name for name in imported if name.endswith(".py")] == []


def test_a_baked_model_is_served_without_a_network(
    built: Callable[..., str], tmp_path: Path, v1_predictions: dict[str, np.ndarray]
) -> None:
    with serving(lambda handler: send(handler, V1_CHECKPOINT.read_bytes())) as (url, asked):
        settings = load_settings(environment=bears_environment(APP_MODEL_URL=f"{url}/stage-2.pth"))
        staged = tmp_path / "staged"
        stage(settings, staged)
        (staged / "app/settings.toml").rename(staged / "settings.toml")  # as in a checkout: the user's own
        shutil.copy(SETTINGS_FILE, staged / "app")
        tag = built(staged, "baked", "--build-arg", "BAKE_MODEL=1")
    assert set(asked) == {"/stage-2.pth"}
    photo = "a05_640x480.jpg"
    with running(tag) as container:
        container.wait_for("ready after")
        answer = json.loads(container.curl("-F", f"file=@{ROOT}/tests/data/images/{photo}", ANALYZE))
    assert scores(answer) == pytest.approx(v1_predictions[photo].tolist(), abs=1e-3)


def test_a_model_that_is_not_baked_is_downloaded_at_start_although_the_root_is_read_only(
    demo: str, v1_predictions: dict[str, np.ndarray]
) -> None:
    photo = "a05_640x480.jpg"
    with serving(lambda handler: send(handler, V1_CHECKPOINT.read_bytes())) as (url, asked):
        settings = bears_environment(APP_MODEL_URL=f"{url}/stage-2.pth")
        options = [f"--env={name}={value}" for name, value in settings.items()]
        loopback = ("python", "-m", "app", "serve", "--host", "127.0.0.1", "--port", "0")
        with running(demo, *options, network="host", command=loopback) as container:
            container.url = container.wait_for(r"running on (http://[\d.:]+)")[1]
            container.wait_for("ready after")
            answer = container.post((ROOT / "tests/data/images" / photo).read_bytes()).json()
    assert set(asked) == {"/stage-2.pth"}
    assert scores(answer) == pytest.approx(v1_predictions[photo].tolist(), abs=1e-3)
