"""The page without a server: this project's own page, answered in the browser by ONNX Runtime Web."""

import base64
import hashlib
import json
import re
import shutil
import string
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from app.errors import ExportError, ToolMissing
from app.exporting.folder import MANIFEST, MODEL, PROGRAMS, PROOF
from app.settings import Settings
from app.web.pages import VIEW, Pages

RUNTIME: Final = "onnxruntime-web@1.30.0"
RUNTIME_FILES: Final = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
STATIC: Final = (
    "api.js",
    "feedback.js",
    "nearest.js",
    "seen.js",
    "why.js",
    "worker.js",
)  # of the server alone
REPLACED: Final = {"core.js": "local.js"}
POLICY: Final = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' 'sha256-{}'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'"
)


def write_site(export: Path, settings: Settings) -> None:
    """Write the folder `web` of an export, whose model is there already.

    Raises ExportError, ToolMissing, SettingsError.
    """
    folder = export / "web"
    static = folder / "static"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(*STATIC)
    shutil.copytree(VIEW / "static", static, ignore=ignored)
    for name in ("classifier.js", "local.js", "seen.js"):
        shutil.copy(PROGRAMS / "web" / name, static / name)
    for path in (export / MODEL, PROGRAMS / "web" / "README.md"):
        shutil.copy(path, folder / path.name)
    shutil.copytree(export / PROOF, folder / PROOF, ignore=shutil.ignore_patterns("*.ppm"))
    _write_runtime(folder / "runtime")
    manifest = json.loads((export / MANIFEST).read_text("utf-8"))
    manifest["bytes"] = (export / MODEL).stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
    pages = Pages(settings)
    pages.classes = tuple(manifest["classes"])
    (static / "style.css").write_text(pages.stylesheet, "utf-8")
    (folder / "manifest.webmanifest").write_text(json.dumps(pages.manifest(), ensure_ascii=False), "utf-8")
    if pages.samples:
        (folder / "samples").mkdir()
    for number, file in enumerate(pages.samples):
        shutil.copy(file, folder / "samples" / str(number))
    language = "en" if settings.lang == "auto" else settings.lang
    (folder / "index.html").write_text(_index(pages.index("downloading", language), language), "utf-8")
    _write_worker(folder)


def _index(page: str, language: str) -> str:
    """Return the server's page with the parts that need a server taken out."""
    promise = json.loads((PROGRAMS / "web" / "promise.json").read_text("utf-8"))[language]
    imports = {f"./static/{name}": f"./static/{local}" for name, local in REPLACED.items()}
    import_map = json.dumps({"imports": imports})
    policy = POLICY.format(base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode())
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<script type="importmap">{import_map}</script>\n'
    )
    changes = [
        (r'<meta charset="utf-8">\n', lambda match: match[0] + head),
        (r'<link rel="modulepreload" href="static/core.js">\n', lambda _: ""),
        (r' method="post" action="[^"]*" enctype="multipart/form-data"', lambda _: ""),
        (r"<noscript><p><button>.*?</noscript>", lambda _: ""),
        (
            r'<button [^>]*data-do="why"[^>]*>.*?</button>',
            lambda match: match[0].replace("quiet", "quiet gone"),
        ),
        (r'<a href="api">.*?</a>', lambda _: f'<span class="soft small">{promise}</span>'),
        (r'<details class="languages">.*?</details>', lambda _: ""),
    ]
    for pattern, change in changes:
        page = re.sub(pattern, change, page, count=1, flags=re.DOTALL)
    return page


def _write_worker(folder: Path) -> None:
    """Write the service worker, which keeps all files under a name that changes with any of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
    names = [
        "./",
        *(
            path.relative_to(folder).as_posix()
            for path in files
            if path.name not in ("index.html", "README.md")
        ),
    ]
    text = string.Template((PROGRAMS / "web" / "worker.js").read_text("utf-8"))
    values = {"version": digest.hexdigest()[:16], "files": json.dumps(names, indent=2)}
    (folder / "worker.js").write_text(text.substitute(values), "utf-8")


def _write_runtime(folder: Path) -> None:
    """Copy ONNX Runtime Web, from node_modules in the working directory, else from npm's registry."""
    folder.mkdir()
    local = Path("node_modules/onnxruntime-web/dist")
    if local.is_dir():
        for name in RUNTIME_FILES:
            shutil.copy(local / name, folder / name)
        return
    npm = shutil.which("npm")
    if npm is None:
        raise ToolMissing(f"npm is missing, which gets {RUNTIME} for the page: install Node.js.")
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", RUNTIME, "--silent", "--prefer-offline", "--pack-destination", temporary]
        packed = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  fixed arguments
        archives = list(Path(temporary).glob("*.tgz"))
        if packed.returncode or not archives:
            raise ExportError(f"npm cannot get {RUNTIME}: {packed.stderr.strip()[-200:]}. Try again online.")
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise ExportError(f"{RUNTIME} has no {name}: this version cannot be used.")
                (folder / name).write_bytes(member.read())
