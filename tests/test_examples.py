"""The examples for Docker Compose and Kubernetes: their linters find nothing, and they name what exists."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.web.listening import GRACE
from app.web.pages import VIEW
from tests.conftest import ROOT

COMPOSE = ROOT / "compose.yaml"
KUBERNETES = ROOT / "examples" / "kubernetes.yaml"
PROGRAMS = Path(sys.executable).parent  # of requirements-dev.txt
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
RESOURCES: dict[str, Any] = {part["kind"]: part for part in yaml.safe_load_all(KUBERNETES.read_text())}
POD: dict[str, Any] = RESOURCES["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        ["compose-lint", COMPOSE],
        ["kubernetes-validate", "--strict", KUBERNETES],
    ],
    ids=lambda command: command[0],
)
def test_a_linter_finds_nothing(command: list[str | Path]) -> None:
    program = PROGRAMS / command[0]
    if not program.exists():
        pytest.skip(f"there is no {command[0]}")
    ended = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_hadolint_finds_nothing_in_the_notebooks_image() -> None:
    inline = SERVICES["notebook"]["build"]["dockerfile_inline"]
    ended = subprocess.run([PROGRAMS / "hadolint", "-"], input=inline, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_notebooks_image_has_the_packages_of_the_project() -> None:
    inline = SERVICES["notebook"]["build"]["dockerfile_inline"]
    pinned = set((ROOT / "requirements.txt").read_text().splitlines())
    pinned |= set((ROOT / "requirements-notebook.txt").read_text().splitlines())
    assert set(re.findall(r"\S+==\S+", inline)) <= pinned


def test_every_host_waits_until_the_requests_under_way_are_answered() -> None:
    pause = POD["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= pause + GRACE
    assert int(SERVICES["server"]["stop_grace_period"].removesuffix("s")) >= GRACE


def test_the_probes_ask_the_servers_own_addresses() -> None:
    (server,) = POD["containers"]
    paths = json.loads((VIEW / "openapi.json").read_text())["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] in paths
    assert server["ports"][0]["containerPort"] == 8080
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"  # a download is no reason to restart


def test_the_keys_come_from_the_secret() -> None:
    (server,) = POD["containers"]
    variables = {each["name"]: each["value"] for each in server["env"]}
    folder = next(each["mountPath"] for each in server["volumeMounts"] if each["name"] == "keys")
    (name,) = RESOURCES["Secret"]["stringData"]
    assert variables["APP_API_KEYS_FILE"] == f"{folder}/{name}"
