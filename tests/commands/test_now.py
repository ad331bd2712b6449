"""`python -m app now`: the staged files, their treatment by Vercel's own program, and the messages."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from app.commands.now import stage
from app.settings_file import load_settings
from tests.conftest import (
    BEARS,
    IMAGES,
    ROOT,
    SECONDS,
    V1_CHECKPOINT,
    bears_environment,
    image_bytes,
    retries,
    run_app,
    started,
)
from tests.containers import CACHE
from tests.http_server import send, serving
from tests.vercel_api import TOKEN, vercel_api

pytestmark = pytest.mark.slow
VERCEL = "64.0.2"
MODELS = ROOT / "app" / "models"
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
OWN = "app/models/own/stage-2.pth"  # the place of a checkpoint from outside app/
TOML_BEARS = 'model_url = "models/own/stage-2.pth"\nclasses = ["black", "grizzly", "teddys"]\n'


def files_of(folder: Path) -> set[str]:
    """The files beneath a folder, by their names there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def tracked() -> list[str]:
    """Return the files of the project without the ignored ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout, so the files of the project are unknown")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def intended() -> set[str]:
    """Return the files to deploy, derived from the tracked ones: app/, and the files that build it."""
    application = {name for name in tracked() if name.startswith("app/")}
    return application | {
        *("Dockerfile", "LICENSE", "requirements.txt", "requirements-serve.txt", "vercel.json")
    }


# --- staging -----------------------------------------------------------------------------------------------


def test_only_the_application_and_its_build_files_are_staged(tmp_path: Path) -> None:
    junk = MODELS / "junk.download"
    junk.write_bytes(b"an old download")
    try:
        stage(load_settings(environment={}), tmp_path / "staged")
    finally:
        junk.unlink()
    assert files_of(tmp_path / "staged") == intended()


def test_the_staged_project_serves_the_model_that_was_opened(tmp_path: Path) -> None:
    photo = str(ROOT / "tests/data/images/a05_640x480.jpg")
    environment = bears_environment(APP_UNSURE_BELOW="0.99", APP_IMAGE_SIZE="192,224", APP_MEAN="0.5,0.5,0.5")
    settings = load_settings(environment=environment)
    stage(settings, tmp_path / "staged")
    command = ["predict", photo, "--json", "--settings", str(tmp_path / "staged/app/settings.toml")]
    assert run_app(*command).stdout == run_app("predict", photo, "--json", **environment).stdout != ""


def test_files_that_the_settings_name_on_this_machine_are_staged(tmp_path: Path) -> None:
    proof = tmp_path / "proof.json"
    proof.write_text("{}")
    samples = tmp_path / "bears"
    samples.mkdir()
    shutil.copy(IMAGES[0], samples)
    environment = bears_environment(APP_PROOF_URL=str(proof), APP_SAMPLES=str(samples))
    stage(load_settings(environment=environment), tmp_path / "staged")
    own = tmp_path / "staged/app/models/own"
    assert files_of(own) == {"stage-2.pth", "proof.json", f"bears/{IMAGES[0].name}"}
    assert (own / "stage-2.pth").read_bytes() == V1_CHECKPOINT.read_bytes()
    staged = load_settings(tmp_path / "staged/app/settings.toml", {})
    assert (staged.model_url, staged.proof_url) == (str(own / "stage-2.pth"), str(own / "proof.json"))
    assert staged.samples == str(own / "bears")
    assert staged.classes == BEARS


def test_a_checkpoint_behind_a_link_stays_there(tmp_path: Path) -> None:
    url = "https://example.org/stage-2.pth?dl=1"
    stage(load_settings(environment=bears_environment(APP_MODEL_URL=url)), tmp_path / "staged")
    assert files_of(tmp_path / "staged/app/models") == set()
    assert load_settings(tmp_path / "staged/app/settings.toml", {}).model_url == url


@pytest.mark.parametrize("patterns", [".gcloudignore", ".railwayignore", ".vercelignore"])
def test_other_hosts_get_the_image_and_a_checkpoint_that_git_ignores(patterns: str, checkout: Path) -> None:
    """git reads the patterns: these hosts say that theirs have its syntax."""
    (checkout / "app/models/bears.pth").write_bytes(b"a checkpoint")
    (checkout / "settings.toml").write_text("model_url = 'app/models/bears.pth'")
    for junk in ("app/models/junk.download", ".venv/bin/python", "app/__pycache__/cli.pyc", ".env"):
        (checkout / junk).parent.mkdir(parents=True, exist_ok=True)
        (checkout / junk).write_text("not for the image")
    subprocess.run(["git", "init", "--quiet"], cwd=checkout, check=True)
    command = ["git", "ls-files", "--others", f"--exclude-from={patterns}"]
    listed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert {*listed.splitlines()} == (intended() - {"vercel.json"}) | {
        "app/models/bears.pth",
        "settings.toml",
    }


# --- the messages -------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_files_and_settings_and_needs_no_command_line_of_vercel(tmp_path: Path) -> None:
    ended = run_app("now", "--dry-run", "--name", "My Bears", **bears_environment(PATH=str(tmp_path)))
    assert ended.returncode == 0, ended.stderr
    shown = set(re.findall(r"^ *[\d,]+  (\S+)$", ended.stdout, re.M))
    assert shown == (intended() - {"app/models/stage-2.pth"}) | {OWN}
    assert "as the project my-bears" in ended.stdout
    assert '"framework": "container"' in ended.stdout
    assert TOML_BEARS in ended.stdout
    assert "resnet" in ended.stdout or "squeezenet" in ended.stdout


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"APP_CLASSES": "black,grizzly"}, "has 3 outputs, the setting classes lists 2 names"),
        ({"APP_ENGINE": "fastai"}, 'engine is "fastai", but the image that Vercel builds has no torch.'),
        ({"PATH": "/nowhere"}, "neither vercel nor npx is installed. Install Node.js"),
    ],
)
def test_an_engine_that_needs_torch_is_not_sent(environment: dict[str, str], sentence: str) -> None:
    ended = run_app(
        "now", *(["--dry-run"] * ("PATH" not in environment)), **bears_environment() | environment
    )
    assert ended.returncode == 1
    assert [sentence in line for line in ended.stderr.splitlines() if line.startswith("error: ")] == [True]
    assert "Traceback" not in ended.stderr


@pytest.mark.torch
def test_more_than_the_free_plan_takes_is_said_before_it_is_sent(tmp_path: Path) -> None:
    import torch

    heavy = tmp_path / "stage-2.pth"
    saved = torch.load(V1_CHECKPOINT, weights_only=False)
    torch.save({"model": saved, "opt": torch.zeros(25_000_000)}, heavy)
    ended = run_app("now", "--dry-run", **bears_environment(APP_MODEL_URL=str(heavy)))
    assert (
        "Vercel's free plan takes 100.0 MB from the command line: put the checkpoint behind" in ended.stdout
    )


@pytest.mark.parametrize(
    ("prints", "code", "said"),
    [
        (
            {"status": "ok", "deployment": {"url": "https://a.vercel.app"}},
            0,
            "\nhttps://a.vercel.app\ncurl -F file=@photo.jpg https://a.vercel.app/analyze\n",
        ),
        (
            {"url": "https://a.vercel.app", "productionUrl": None},
            0,
            "This is a preview, which only you can see",
        ),
        ("all is well", 0, "the output of Vercel has no link: '\"all is well\"'"),
        ("", 7, "error: Vercel's command line failed, for the reason above; docs/deploy.md"),
    ],
)
def test_without_vercel_npx_brings_it_and_its_exit_code_is_ours(
    tmp_path: Path, prints: object, code: int, said: str
) -> None:
    """A small program in the place of npx; the real command line is tried below."""
    npx = tmp_path / "npx"
    npx.write_text(
        f"#!/bin/sh\necho \"$@\" > {tmp_path}/arguments\necho '{json.dumps(prints)}'\nexit {code}\n"
    )
    npx.chmod(0o755)
    ended = run_app("now", "--prod", "--", "--force", **bears_environment(PATH=str(tmp_path)))
    assert ended.returncode == code
    assert said in ended.stdout + ended.stderr
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["--yes", "vercel@latest", "deploy", "--yes", "--json", "--prod", "--force"]


@pytest.mark.deploy
def test_npx_that_cannot_reach_its_registry_is_not_a_refusal_of_vercels(tmp_path: Path) -> None:
    """The machine's own npx, with a registry where nobody listens."""
    npx = shutil.which("npx") or pytest.skip("there is no npx")
    (tmp_path / "npx").symlink_to(npx)
    (tmp_path / "node").symlink_to(str(shutil.which("node")))
    (tmp_path / "sh").symlink_to("/bin/sh")
    registry = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_fetch_retries": "0"}
    home = {"PATH": str(tmp_path), "HOME": str(tmp_path), "npm_config_cache": str(tmp_path / "cache")}
    ended = run_app("now", **bears_environment() | registry | home)
    assert ended.returncode > 0
    assert "ECONNREFUSED" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: npx could not bring Vercel's command line")


def test_fetch_opens_the_model_and_prints_its_name() -> None:
    kept = set(MODELS.iterdir())
    with serving(lambda handler: send(handler, V1_CHECKPOINT.read_bytes())) as (url, asked):
        ended = run_app("fetch", **bears_environment(APP_MODEL_URL=f"{url}/stage-2.pth"))
    for download in set(MODELS.iterdir()) - kept:
        download.unlink()
    assert ended.returncode == 0, ended.stderr
    assert f"{V1_CHECKPOINT.stat().st_size:,} bytes" in ended.stdout
    assert asked == ["/stage-2.pth"]


# --- Vercel's own command line, against a stand-in of the API ----------------------------------------------


@pytest.fixture(scope="session")
def with_vercel() -> dict[str, str]:
    """The environment in which `vercel` is the real one, installed once into the cache of the tests."""
    if not shutil.which("npm"):
        pytest.skip("Vercel's command line is not tried here: there is no npm")
    folder = CACHE / f"vercel-{VERCEL}"
    if not (folder / "node_modules/.bin/vercel").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # the sandbox that it asks for by itself is not in every registry
        wanted = {"dependencies": {"vercel": VERCEL}, "overrides": {"sandbox": "4.5.0"}}
        (folder / "package.json").write_text(json.dumps(wanted))
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        ended = subprocess.run(install, cwd=folder, capture_output=True, text=True)
        if ended.returncode:
            pytest.skip(f"Vercel's command line cannot be installed here: {ended.stderr[-300:]}")
    home = folder / "home"  # where nobody has signed in
    home.mkdir(exist_ok=True)
    path = f"{folder}/node_modules/.bin{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "XDG_DATA_HOME": str(home), "VERCEL_TELEMETRY_DISABLED": "1"}


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """The tracked files of the project in a folder of their own, as a clone has them."""
    folder = tmp_path / "fastai-now"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.deploy
def test_vercel_gets_the_intended_files_a_container_and_a_port(with_vercel: dict[str, str]) -> None:
    environment = with_vercel | bears_environment(SECRET="hunter2", VERCEL_PROJECT_ID="", VERCEL_ORG_ID="")
    with vercel_api() as vercel:
        ended = run_app(
            *("now", "--name", "bears", "--", "--api", vercel.url, "--token", TOKEN), **environment
        )
        assert ended.returncode == 0, ended.stderr
        sources = vercel.sources()
        assert sources.keys() == (intended() - {"app/models/stage-2.pth"}) | {OWN}
        for name in sources.keys() - {"app/settings.toml", OWN, "vercel.json"}:
            assert sources[name] == (ROOT / name).read_bytes()
        assert sources[OWN] == V1_CHECKPOINT.read_bytes()
        assert sources["app/settings.toml"].decode().startswith(TOML_BEARS)
        assert not any(b"hunter2" in source or TOKEN.encode() in source for source in sources.values())
        assert vercel.deployment["projectSettings"]["framework"] == "container"
        assert vercel.deployment["env"] == {"PORT": "8080", "APP_MAX_UPLOAD_MB": "4"}
        assert vercel.deployment["build"] == {"env": {"BAKE_MODEL": "1"}}
        assert vercel.deployment["name"] == "bears"
        assert "target" not in vercel.deployment
    assert "Deploying ada/bears" in ended.stderr
    link, curl, preview = ended.stdout.splitlines()[-3:]
    assert link == "https://bears-1a2b3c.vercel.app"
    assert curl == f"curl -F file=@photo.jpg {link}/analyze"
    assert "For everybody: add the option --prod" in preview


@pytest.mark.deploy
def test_prod_prints_the_link_for_everybody(with_vercel: dict[str, str]) -> None:
    with vercel_api() as vercel:
        arguments = ("--prod", "--name", "bears", "--", "--api", vercel.url, "--token", TOKEN)
        ended = run_app("now", *arguments, **with_vercel | bears_environment())
        assert vercel.deployment["target"] == "production"
    assert ended.stdout.endswith(
        "\nhttps://bears.vercel.app\ncurl -F file=@photo.jpg https://bears.vercel.app/analyze\n"
    )


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("token", "refusal", "sentence"),
    [
        ([], None, "error: You are not logged in to Vercel: run `npx vercel login`"),
        (["--token", "b" * 24], None, "error: You are not logged in to Vercel"),
        (
            ["--token", TOKEN],
            (402, "Container images are not available on your plan."),
            "error: Your plan or account at Vercel does not allow this, for the reason above; docs/",
        ),
        (
            ["--token", TOKEN],
            (400, "The moon is full."),
            "error: Vercel's command line failed, for the reason above; docs/deploy.md",
        ),
    ],
)
def test_a_refusal_is_one_sentence_and_vercels_exit_code(
    with_vercel: dict[str, str], token: list[str], refusal: tuple[int, str] | None, sentence: str
) -> None:
    with vercel_api(refusal) as vercel:
        ended = run_app("now", "--", "--api", vercel.url, *token, **with_vercel | bears_environment())
    assert ended.returncode == 1
    assert [sentence in line for line in ended.stderr.splitlines() if line.startswith("error: ")] == [True]
    if refusal:
        assert refusal[1] in ended.stderr


@pytest.mark.deploy
def test_vercel_by_hand_sends_the_same_files_once_now_json_is_renamed(
    with_vercel: dict[str, str], checkout: Path
) -> None:
    command = ["vercel", "deploy", "--yes"]
    environment = {**os.environ, **with_vercel}
    refused = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert "now.json" in refused.stderr  # why `python -m app now` stages
    (checkout / "now.json").rename(checkout / "vercel.json")
    (checkout / "app/models/junk.download").write_bytes(b"an old download")
    (checkout / ".env").write_text("SECRET=hunter2")
    with vercel_api() as vercel:
        command += ["--api", vercel.url, "--token", TOKEN]
        ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert vercel.sources().keys() == intended()
        assert vercel.deployment["projectSettings"]["framework"] == "container"


def test_the_python_function_of_the_documents_answers(tmp_path: Path) -> None:
    """Under uvicorn, which speaks ASGI as Vercel's runtime does."""
    text = re.search(r"^`index.py`:\n\n```python\n(.*?)```", DEPLOY, re.M | re.S)
    assert text
    (tmp_path / "index.py").write_text(text[1])
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(tmp_path), "--port", "0", "index:app"]
    with started(command, **bears_environment()) as server:
        server.url = server.wait_for(r"running on (http://[\d.:]+)")[1]
        with requests.Session() as session:
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries()))
            assert session.get(f"{server.url}/readyz", timeout=SECONDS).status_code == 200
        assert server.post(image_bytes("a00_224x224.jpg")).json()["result"] in BEARS


@pytest.mark.deploy
def test_the_python_function_of_the_documents_is_built_and_fits(
    with_vercel: dict[str, str], tmp_path: Path
) -> None:
    python = shutil.which("python3.13") or shutil.which("python3.12")
    if not python:
        pytest.skip("the Python function is not built here: there is no Python 3.12 or 3.13")
    stage(load_settings(environment={}), tmp_path / "staged")
    folder = tmp_path / "function"
    shutil.copytree(tmp_path / "staged/app", folder / "app")
    shutil.copy(ROOT / "requirements-serve.txt", folder / "requirements.txt")
    written = re.findall(r"^`(\S+)`[^\n]*:\n\n```\w+\n(.*?)```", DEPLOY, re.M | re.S)
    assert [name for name, _ in written] == ["vercel.json", ".python-version", "index.py"]
    for name, text in written:
        (folder / name).write_text(text)
    (folder / ".python-version").write_text(python[-4:])
    link = folder / ".vercel/project.json"  # as where a project has been linked
    link.parent.mkdir()
    link.write_text('{"projectId": "prj_1", "orgId": "team_1", "settings": {}}')
    uv = str(Path(sys.executable).parent)  # one of requirements-dev.txt
    environment = {**os.environ, **with_vercel, "UV_SYSTEM_CERTS": "1"}
    environment["PATH"] = os.pathsep.join((with_vercel["PATH"], str(Path(python).parent), uv))
    ended = subprocess.run(["vercel", "build"], cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    function = json.loads((folder / ".vercel/output/functions/python.func/.vc-config.json").read_text())
    sizes = {name: (folder / path).stat().st_size for name, path in function["filePathMap"].items()}
    bare = sum(size for name, size in sizes.items() if not name.startswith("app/models/")) / 2**20
    documented = re.search(r"function takes (\d+) MiB", DEPLOY)
    assert documented
    assert bare == pytest.approx(int(documented[1]), abs=5)
