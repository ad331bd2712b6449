"""The page of a trained learner in a cell of its notebook:

    from fastai_now.notebook import serve
    page = serve(learn)

It knows nothing of the application but the command that starts it: a notebook may have an `app` of its own.
"""

import atexit
import importlib.util
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path
from threading import Thread
from typing import Any, Final

PATIENCE: Final = 300  # seconds until the model has opened and reproduced the proof
HEIGHT: Final = 760  # px: the page with an answer
NEEDED: Final = (
    "onnxruntime",
    "starlette",
    "uvicorn",
)  # packages of the server, to know whether it can run here
CELLS: Final = ("cells", "../notebook")  # where an installed package and a checkout have them

# without the proxies of the environment: the server is on this machine
_local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_current: "Page | None" = None


def serve(learn: Any, folder: str | Path = "classifier") -> "Page":
    """Write a learner's files into `folder`, serve them, and wait until they give the notebook's predictions.

    The page replaces that of an earlier call. Raises RuntimeError with the server's reason if it cannot serve
    the learner, and NotImplementedError for a transform that it cannot repeat.
    """
    global _current
    if _current:
        _current.stop()
    _deploy(learn, Path(folder))
    _current = Page(Path(folder))
    return _current


class Page:
    """A server of the files in a folder, on this machine; in a notebook it shows itself below the cell."""

    def __init__(self, folder: Path) -> None:
        """Start the server and wait until it is ready. Raises RuntimeError with its reason if it ends."""
        command = [*_command(), "serve", "--settings", str(folder / "settings.toml"), "--port", "0"]
        environment = {**os.environ, "APP_FRAME_ORIGINS": "*", "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", env=environment
        )
        self._log: deque[str] = deque(maxlen=50)
        self.port = 0
        atexit.register(self.stop)
        Thread(target=self._read, daemon=True).start()
        self._wait()

    @property
    def url(self) -> str:
        """The address for the browser that shows the notebook."""
        if "JPY_SESSION_NAME" in os.environ and importlib.util.find_spec("jupyter_server_proxy"):
            return f"{os.environ.get('JUPYTERHUB_SERVICE_PREFIX', '/')}proxy/{self.port}/"
        return f"http://127.0.0.1:{self.port}/"

    def predict(self, photo: Any) -> dict[str, Any]:
        """Return the server's answer for a photo: a path, the bytes of a file, or a PIL image.

        Raises ValueError with the server's reason if it refuses the photo.
        """
        if isinstance(photo, bytes):
            data = photo
        elif hasattr(photo, "save"):
            photo.save(file := io.BytesIO(), "PNG")
            data = file.getvalue()
        else:
            data = Path(photo).read_bytes()
        url = self._local_url("analyze")
        request = urllib.request.Request(url, data, {"content-type": "image/*"})  # noqa: S310  # http
        try:
            with _local.open(request, timeout=60) as answer:
                return json.load(answer)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as refusal:
            raise ValueError(json.load(refusal)["detail"]) from refusal

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _local_url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def _read(self) -> None:
        """Read the log to its end, so that the server never waits for a reader."""
        with self._process.stderr as log:  # type: ignore[union-attr]  # it is a pipe
            for line in log:
                self._log.append(line)
                if " running on http://" in line:
                    self.port = int(line.partition("http://127.0.0.1:")[2].split()[0])

    def _wait(self) -> None:
        """Wait until the model is open. Raises RuntimeError."""
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < end:
            try:
                if self.port:
                    _local.open(self._local_url("readyz"), timeout=10).close()
                    return
            except OSError:  # 503 while it is opening
                pass
            time.sleep(0.1)
        self.stop()
        reasons = [line.removeprefix("error: ") for line in self._log if line.startswith("error: ")]
        raise RuntimeError((reasons or list(self._log) or ["The server ended without a log."])[-1].strip())

    def _ipython_display_(self) -> None:
        """Show the page below the cell, where the browser can reach it."""
        shown: Any = importlib.import_module("IPython.display")
        if "google.colab" in sys.modules:
            colab: Any = importlib.import_module("google.colab.output")
            colab.serve_kernel_port_as_iframe(self.port, height=HEIGHT)
            return
        if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
            print("Kaggle shows no page of a notebook's own; page.predict(photo) works, and")
            print(
                "fastai-now export site --to web --settings classifier/settings.toml writes one to download."
            )
            return
        extras = ['allow="camera"', 'style="border: 0"']
        shown.display(shown.IFrame(self.url, "100%", HEIGHT, extras=extras))
        print(f"Your page: {self.url}")


def _command() -> list[str]:
    """Return the command of the server: of this Python, or of an environment of its own on the PATH."""
    if all(map(importlib.util.find_spec, NEEDED)):
        return [sys.executable, str(Path(__file__).with_name("__main__.py"))]
    if command := shutil.which("fastai-now"):
        return [command]
    raise RuntimeError(
        "The packages of the server are not installed here, and the command fastai-now is not on the PATH. "
        "Install fastai-now here, or into an environment of its own with `uv tool install` or pipx, which "
        "leaves the packages of the notebook as they are."
    )


def _deploy(learn: Any, folder: Path) -> None:
    """Run the cell that writes the files of a learner: people without this package paste it."""
    here = Path(__file__).parent
    path = next(found for place in CELLS if (found := here / place / "deploy_cell.py").exists())
    runpy.run_path(str(path))["deploy"](learn, folder=folder)
