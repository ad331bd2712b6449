"""The image built from the Dockerfile as it is, and run as hosts run it: with buildah, podman and runc.

No image registry is asked. The base image is made of what this machine has: the files of Debian's
essential packages, and the Python that runs the tests, where python:3.11-slim-bookworm has them. The wheels
that the image installs are fetched by this machine's pip, however it is configured, and handed to the build.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SECONDS, ServerProcess

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
BASE = "docker.io/library/python:3.11-slim-bookworm"
TOOLS = ("buildah", "podman", "runc", "nsenter", "curl", "dpkg-query")
# what the official image has beside the essential packages: libraries of Python's own modules, and of wheels
BESIDE = (
    *("ca-certificates", "netbase", "passwd", "tzdata", "libbz2-1.0", "libexpat1", "libffi8", "liblzma5"),
    *("libncursesw6", "libreadline8", "libsqlite3-0", "libssl3", "libstdc++6", "libuuid1", "zlib1g"),
)
UNWANTED = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bash-completion)/")
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "__pycache__"}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastai-now-tests"
WHEELS = CACHE / "wheels"
PIP = CACHE / "pip.conf"


def skip_without_tools() -> None:
    """Skip, saying what is missing."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        pytest.skip(f"containers are not tried here: there is no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("containers are not tried here: that needs root")
    if sys.version_info[:2] != (3, 11) or sys.base_prefix == "/usr":
        pytest.skip(
            "containers are not tried here: no Python 3.11 beside Debian's own to make the base image of"
        )


def _store() -> list[str]:
    """A store of images that is shared with nobody."""
    return ["--root", f"{CACHE}/images", "--runroot", f"{CACHE}/run", "--storage-driver", "overlay"]


def run(*command: str) -> str:
    """The standard output of a command that must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}:\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def buildah(*arguments: str) -> str:
    """A command of buildah on that store."""
    return run("buildah", *_store(), *arguments)


def podman(*arguments: str) -> str:
    """A command of podman on that store."""
    return run(*_podman(*arguments))


def _podman(*arguments: str) -> list[str]:
    return ["podman", *_store(), "--cgroup-manager", "cgroupfs", "--runtime", "runc", *arguments]


# --- the base image ----------------------------------------------------------------------------------------


def make_base_image() -> None:
    """Make the stand-in of the base image, unless an earlier run did."""
    if BASE in buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    archive = CACHE / "base.tar"
    with tarfile.open(archive, "w") as tar:
        for source, name in [*_debian(), *_python()]:
            tar.add(source, name, recursive=False)
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, str(archive), "/")
    in_it = ("run", "--isolation", "chroot", container, "--", "/bin/sh", "-c")
    # what the packages' own scripts do after they are unpacked
    buildah(
        *in_it,
        "cd /usr/share && cp base-passwd/passwd.master /etc/passwd && cp base-passwd/group.master /etc/group"
        " && cp libc-bin/nsswitch.conf /etc && chmod 1777 /tmp && ldconfig"
        f" && ln -s {PYTHON} /usr/local/bin/python3 && ln -s python3 /usr/local/bin/python"
        " && python -B -m ensurepip && ln -s pip3 /usr/local/bin/pip && mkdir /wheels",
    )
    buildah("config", "--env", "LANG=C.UTF-8", "--cmd", '["python3"]', container)
    buildah("commit", "--quiet", "--format", "docker", "--rm", container, BASE)
    archive.unlink()


def _debian() -> Iterator[tuple[Path, str]]:
    """Files of this machine's essential packages and of those they need, and what they are called there."""
    fields = "${Package}\t${Essential}\t${Pre-Depends}, ${Depends}\n"
    rows = [line.split("\t") for line in run("dpkg-query", "-W", "-f", fields).splitlines() if "\t" in line]
    needs = {package: re.findall(r"[a-z0-9][a-z0-9+.-]+", needed) for package, _, needed in rows}
    wanted = [*BESIDE, *(package for package, essential, _ in rows if essential == "yes")]
    packages: set[str] = set()
    while wanted:
        package = wanted.pop()
        if package in needs and package not in packages:
            packages.add(package)
            wanted += needs[package]
    for link in ("bin", "lib", "lib64", "sbin"):  # to their namesakes in /usr
        yield Path("/", link), link
    seen = set()
    for listed in run("dpkg-query", "-L", *sorted(packages)).splitlines():
        place = Path(os.path.realpath(os.path.dirname(listed)), os.path.basename(listed))
        if listed.startswith("/") and place not in seen and os.path.lexists(place):
            seen.add(place)
            if not UNWANTED.match(f"{place}/") and str(place) not in ("/", "/bin", "/lib", "/lib64", "/sbin"):
                yield place, str(place.relative_to("/"))


def _python() -> Iterator[tuple[Path, str]]:
    """Files of the Python that runs the tests, without what is installed in it."""
    home = Path(sys.base_prefix)
    libraries = (home / "lib").glob("libpython*.so*")
    modules = [
        path
        for path in (home / "lib" / PYTHON).rglob("*")
        if not LEFT_OUT & set(path.relative_to(home).parts) and "/config-" not in str(path)
    ]
    for path in [home / "bin" / PYTHON, *libraries, *modules]:
        yield path, f"usr/local/{path.relative_to(home)}"


# --- images and containers ---------------------------------------------------------------------------------


def fetch_wheels() -> None:
    """Fetch what the image installs, with this machine's pip."""
    download = ("download", "--quiet", "--dest", str(WHEELS), "--find-links", str(WHEELS))
    run(sys.executable, "-m", "pip", *download, "-r", str(ROOT / "requirements-serve.txt"))
    PIP.write_text("[global]\nno-index = true\nfind-links = /wheels\ndisable-pip-version-check = true\n")


def build(context: Path, tag: str, *options: str) -> None:
    """`docker build CONTEXT`, offline but for this machine's loopback."""
    buildah(
        *("build", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers"),
        *("--format", "docker"),  # the other one has no HEALTHCHECK
        *("--volume", f"{WHEELS}:/wheels:ro", "--volume", f"{PIP}:/etc/pip.conf:ro"),
        *("--tag", tag, *options, str(context)),
    )


def image(tag: str) -> dict[str, Any]:
    """What podman says of an image."""
    described: dict[str, Any] = json.loads(podman("image", "inspect", tag))[0]
    return described


class Container(ServerProcess):
    """A container that runs; unless started otherwise, its network has nothing but its own loopback."""

    name: str

    def curl(self, *arguments: str) -> str:
        """What curl prints, inside the container's network."""
        pid = podman("inspect", self.name, "--format", "{{.State.Pid}}").strip()
        return run("nsenter", "--target", pid, "--net", "--", "curl", "--silent", *arguments)


@contextmanager
def running(
    tag: str, *options: str, network: str = "none", command: Sequence[str] = ()
) -> Iterator[Container]:
    """Run an image as hosts do: its own user and command, a read-only root, 512 MB. The end is SIGTERM's."""
    hard = run("sh", "-c", "ulimit -Hn").strip()  # podman would ask for more than this machine may grant
    name = f"fastai-now-{os.getpid()}"
    podman_run = _podman(
        *("run", "--rm", "--name", name, "--pull", "never", "--network", network, "--read-only"),
        *("--memory", "512m", "--ulimit", f"nofile={hard}:{hard}", "--ulimit", "nproc=4096:4096"),
        *(*options, tag, *command),
    )
    environment = {**os.environ, "DISABLE_HC_SYSTEMD": "true"}  # no timers: the tests ask for its health
    process = subprocess.Popen(podman_run, env=environment, stderr=subprocess.PIPE, text=True)
    container = Container(process)
    container.name = name
    threading.Thread(target=container.read, daemon=True).start()
    try:
        yield container
    finally:
        if process.poll() is None:
            process.terminate()  # podman hands it on
        try:
            process.wait(SECONDS)
        finally:
            subprocess.run(_podman("rm", "--force", "--ignore", "--time", "0", name), capture_output=True)
