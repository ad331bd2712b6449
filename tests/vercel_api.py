"""A stand-in of Vercel's API on loopback: as much of it as `vercel deploy` asks for, and what it was sent.

Written from what the command line asks, so it shows what that sends, not what Vercel does with it.
"""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TOKEN = "a" * 24  # the length that the command line asks for
USER = {"id": "user_1", "email": "ada@example.org", "username": "ada", "version": "northstar"}
TEAM = {"id": "team_1", "slug": "ada", "name": "Ada"}
DEPLOYMENT = {
    "id": "dpl_1",
    "version": 2,
    "readyState": "READY",
    "status": "READY",
    "target": None,
    "alias": [],
    "aliasAssigned": True,
    "inspectorUrl": "https://vercel.com/ada",
    "projectId": "prj_1",
    "ownerId": TEAM["id"],
    "builds": [],
    "createdAt": 1,
    "buildingAt": 1,
}


@dataclass
class Vercel:
    """What has arrived: `files` by their sha1, and the deployment that named them."""

    url: str
    refusal: tuple[int, str] | None  # the status and message with which it refuses to deploy
    files: dict[str, bytes] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)

    def sources(self) -> dict[str, bytes]:
        """The deployed files by their names."""
        return {file["file"]: self.files[file["sha"]] for file in self.deployment["files"]}

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, object]:
        """Status and JSON for one request."""
        if headers["Authorization"] != f"Bearer {TOKEN}":
            return 403, _error("forbidden", "Not authorized")
        match method, path:
            case "GET", "/v2/user":
                return 200, {"user": USER | {"defaultTeamId": TEAM["id"]}}
            case "GET", "/v1/teams":
                return 200, {"teams": [TEAM], "pagination": {"count": 1}}
            case "POST", "/v1/projects":
                return 200, {"id": "prj_1", "name": json.loads(body)["name"], "accountId": TEAM["id"]}
            case "POST", "/v2/files":
                digest = headers["x-now-digest"]
                if hashlib.sha1(body).hexdigest() != digest:
                    return 400, _error("bad_digest", "The file is not what its digest says")
                self.files[digest] = body
                return 200, {}
            case "POST", "/v13/deployments":
                return self._deploy(json.loads(body))
        return 404, _error("not_found", f"{method} {path} is not among what this stands in for")

    def _deploy(self, wanted: dict[str, Any]) -> tuple[int, object]:
        if self.refusal:
            status, message = self.refusal
            return status, _error("refused", message)
        missing = [file["sha"] for file in wanted["files"] if file["sha"] not in self.files]
        if missing:
            return 400, _error("missing_files", "Missing files", missing=missing)
        self.deployment = wanted
        name, production = wanted["name"], wanted.get("target") == "production"
        deployment = DEPLOYMENT | {"name": name, "url": f"{name}-1a2b3c.vercel.app"}
        if production:
            deployment |= {"target": "production", "alias": [f"{name}.vercel.app"]}
        return 200, deployment


def _error(code: str, message: str, **more: object) -> object:
    return {"error": {"code": code, "message": message, **more}}


@contextmanager
def vercel_api(refusal: tuple[int, str] | None = None) -> Iterator[Vercel]:
    """Serve it on a free port of loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, answer = vercel.answer(self.command, self.path.partition("?")[0], self.headers, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    vercel = Vercel(f"http://127.0.0.1:{server.server_port}", refusal)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield vercel
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
