"""Several models and versions in one server: their addresses, Clipper's JSON, and another file on SIGHUP."""

import base64
import concurrent.futures
import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from app.settings import DEMO
from tests.conftest import BEARS, IMAGES, ROOT, SECONDS, V1_CHECKPOINT, ServerProcess, run_app, servers
from tests.http_client import assert_problem

pytestmark = pytest.mark.slow
LABEL = re.compile(r'(\w+)="([^"]*)"')
PHOTO = (ROOT / "app" / "samples" / "dress.jpg").read_bytes()
BEAR = IMAGES[0].read_bytes()

BEAR_SETTINGS = f"""
model_url = "{V1_CHECKPOINT}"
classes = {json.dumps(BEARS)}
pipeline = "fastai1"
"""
GARMENT_SETTINGS = f"""
model_url = "{DEMO}"
classes = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]
architecture = "tf_efficientnet_lite0"
"""
TABLES = f"""
[models.bears.v1]
{BEAR_SETTINGS}
[models.garments.v1]
[models.garments.v2]
unsure_below = 1.0

[applications.garments]
model = "garments"
version = "v1"
title = "What do you wear?"
cache = 100

[applications.zoo]
model = "bears"
version = "v1"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., ServerProcess]]:
    with servers() as start:
        yield start


def ready(server: ServerProcess) -> ServerProcess:
    server.wait_for("ready after")
    return server


@pytest.fixture(scope="module")
def both(start: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A ready server of two models, one of them in two versions."""
    file = write(tmp_path_factory.mktemp("both") / "settings.toml", GARMENT_SETTINGS + TABLES)
    return ready(start("--settings", str(file)))


def ask(server: ServerProcess, path: str, photo: bytes = PHOTO) -> requests.Response:
    headers = {"content-type": "image/jpeg"}
    return requests.post(f"{server.url}{path}", photo, headers=headers, timeout=SECONDS)


def value(server: ServerProcess, metric: str, /, **labels: str) -> float:
    """A line of /metrics."""
    for line in requests.get(f"{server.url}/metrics", timeout=SECONDS).text.splitlines():
        found = re.fullmatch(r"fastai_now_(\w+)\{(.*)\} (\S+)", line)
        if found and found[1] == metric and labels.items() <= dict(LABEL.findall(found[2])).items():
            return float(found[3])
    return 0.0


def test_each_application_answers_as_its_model_does_alone(both: ServerProcess, tmp_path: Path) -> None:
    for path, photo, text, name in (
        ("/garments/analyze", PHOTO, GARMENT_SETTINGS, "garments/v1"),
        ("/zoo/analyze", BEAR, BEAR_SETTINGS, "bears/v1"),
        ("/analyze", PHOTO, GARMENT_SETTINGS, "garments/v1"),
    ):
        file = write(tmp_path / "alone.toml", text)
        (tmp_path / "photo.jpg").write_bytes(photo)
        printed = run_app("predict", "--json", "--settings", str(file), str(tmp_path / "photo.jpg")).stdout
        alone = json.loads(printed)
        answer = ask(both, path, photo)
        assert answer.headers["x-model"] == name
        assert {"file": alone["file"], **answer.json()} == alone


def test_a_request_pins_a_version(both: ServerProcess) -> None:
    answer = ask(both, "/garments/analyze?version=v2")
    assert (answer.headers["x-model"], answer.json()["unsure"]) == ("garments/v2", True)
    assert ask(both, "/garments/explain?version=v2").headers["x-model"] == "garments/v2"
    assert_problem(ask(both, "/garments/analyze?version=v3"), 400, "unknown-version")
    several = requests.post(
        f"{both.url}/garments/analyze?many=1&version=v2",
        files=[("file", PHOTO), ("file", b"none"), ("file", PHOTO)],
        timeout=SECONDS,
    ).json()
    assert [each.get("unsure", each.get("code")) for each in several] == [True, "unrecognised-image", True]


def test_clipper_clients_are_answered(both: ServerProcess) -> None:
    text = base64.b64encode(PHOTO).decode()
    answer = requests.post(f"{both.url}/garments/predict", json={"input": text}, timeout=SECONDS)
    first = answer.json()
    assert first == {"query_id": first["query_id"], "output": "dress", "default": False}
    assert answer.headers["x-model"] == "garments/v1"
    pinned = requests.post(
        f"{both.url}/garments/predict", json={"input": text, "version": "v2"}, timeout=SECONDS
    )
    assert pinned.headers["x-model"] == "garments/v2"
    assert pinned.json()["query_id"] > first["query_id"]
    batch = requests.post(
        f"{both.url}/zoo/predict",
        json={"input_batch": [base64.b64encode(photo).decode() for photo in (BEAR, b"none", BEAR)]},
        timeout=SECONDS,
    ).json()
    outputs = [each.get("output", each.get("code")) for each in batch["batch_predictions"]]
    assert outputs[0] == outputs[2] == ask(both, "/zoo/analyze", BEAR).json()["result"]
    assert outputs[1] == "unrecognised-image"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 415, "unsupported-media-type"),
        (b"{", 415, "unsupported-media-type"),
        (b'{"input": 3}', 415, "unsupported-media-type"),
        (b'{"input": "AAAA", "input_batch": ["AAAA"]}', 415, "unsupported-media-type"),
        (b'{"input": "no base64!"}', 415, "unsupported-media-type"),
        (b'{"input": "AAAA"}', 415, "unrecognised-image"),
        (b'{"input": ""}', 400, "empty-file"),
        (b'{"input": "AAAA", "version": "v9"}', 400, "unknown-version"),
        (json.dumps({"input_batch": ["AAAA"] * 21}).encode(), 400, "too-many-files"),
        (b'{"input": "' + b"A" * 11_000_000 + b'"}', 413, "payload-too-large"),
    ],
)
def test_a_clipper_query_without_a_photo_is_a_problem(
    body: bytes, status: int, code: str, both: ServerProcess
) -> None:
    url = f"{both.url}/garments/predict"
    assert_problem(requests.post(url, body, timeout=SECONDS), status, code)


def test_each_application_has_its_page_and_the_first_one_is_at_the_root(both: ServerProcess) -> None:
    root, garments, zoo = (
        requests.get(f"{both.url}{path}", timeout=SECONDS) for path in ("/", "/garments/", "/zoo")
    )
    assert root.text == garments.text
    assert "<h1>What do you wear?</h1>" in garments.text
    assert zoo.url == f"{both.url}/zoo/"
    assert all(name in zoo.text for name in BEARS)
    for page in (garments, zoo):
        for link in re.findall(r'(?:src|href)="([^":]+)"', page.text):
            linked = requests.get(requests.compat.urljoin(page.url, link), timeout=SECONDS)
            assert linked.status_code == 200, link
    assert requests.get(f"{both.url}/zoo/model", timeout=SECONDS).json()["classes"] == list(BEARS)
    assert "/zoo/predict" in requests.get(f"{both.url}/zoo/api", timeout=SECONDS).text


def test_there_is_nothing_below_other_names(both: ServerProcess) -> None:
    for path in ("/zo", "/zo/", "/zo/analyze", "/zoo/zoo/", "/zoo/metrics", "/zoo/healthz", "/predict"):
        answer = requests.get(f"{both.url}{path}", timeout=SECONDS)
        assert_problem(answer, 404, "not-found")
    assert_problem(requests.get(f"{both.url}/zoo/analyze", timeout=SECONDS), 405, "method-not-allowed")


def test_the_openapi_documents_name_the_requests_of_applications(both: ServerProcess) -> None:
    root, zoo = (
        requests.get(f"{both.url}{path}/openapi.json", timeout=SECONDS).json() for path in ("", "/zoo")
    )
    assert {"/analyze", "/garments/predict", "/zoo/predict", "/zoo/explain", "/healthz"} <= root[
        "paths"
    ].keys()
    assert "/predict" not in root["paths"]
    assert zoo["servers"] == [{"url": "/zoo"}]
    assert {"/predict", "/analyze"} <= zoo["paths"].keys() and "/metrics" not in zoo["paths"]
    ids = [each["operationId"] for path in root["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))
    assert "version" in {each["name"] for each in zoo["paths"]["/analyze"]["post"]["parameters"]}


def test_a_photo_sent_again_is_not_computed_again(both: ServerProcess) -> None:
    labels = {"application": "garments", "model": "garments", "version": "v1"}
    photo = PHOTO + b"behind the picture"
    before = value(both, "answers_total", source="computed", **labels)
    with requests.Session() as session:
        answers = {
            session.post(f"{both.url}/garments/analyze", files={"file": photo}, timeout=SECONDS).text
            for _ in range(100)
        }
    assert len(answers) == 1
    assert value(both, "answers_total", source="computed", **labels) == before + 1


def test_an_objective_of_a_millisecond_gives_the_flagged_default(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    text = GARMENT_SETTINGS + TABLES.replace("cache = 100", 'objective_ms = 1\ndefault = "some garment"')
    server = ready(start("--settings", str(write(tmp_path / "settings.toml", text))))
    answer = ask(server, "/garments/analyze")
    assert answer.status_code == 200
    assert answer.json() == {
        "result": "some garment",
        "confidence": 0.0,
        "familiarity": None,
        "unsure": True,
        "predictions": [{"label": "some garment", "score": 0.0}],
        "default": True,
        "default_explanation": "There was no answer within 1 ms.",
    }
    clipper = requests.post(
        f"{server.url}/garments/predict", json={"input": base64.b64encode(PHOTO).decode()}, timeout=SECONDS
    ).json()
    assert (clipper["output"], clipper["default"]) == ("some garment", True)
    assert clipper["default_explanation"] == "There was no answer within 1 ms."
    page = requests.post(
        f"{server.url}/garments/analyze",
        files={"file": PHOTO},
        headers={"accept": "text/html"},
        timeout=SECONDS,
    )
    assert (page.status_code, "some garment" in page.text) == (200, True)
    server.wait_for(r"POST /garments/analyze 200 late")


def test_the_server_of_one_model_has_no_applications(bears: ServerProcess) -> None:
    answer = bears.post(BEAR)
    assert "x-model" not in answer.headers
    assert list(answer.json()) == ["result", "confidence", "familiarity", "unsure", "predictions"]
    assert ask(bears, "/analyze?version=v7", BEAR).json() == answer.json()
    assert_problem(requests.post(f"{bears.url}/predict", json={}, timeout=SECONDS), 404, "not-found")


# --- another file on SIGHUP ---


def test_sighup_relinks_under_load_without_losing_a_request(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    text = GARMENT_SETTINGS + TABLES.replace("cache = 100", "")
    file = write(tmp_path / "settings.toml", text)
    server = ready(start("--settings", str(file)))
    seen, stop = Counter[Any](), threading.Event()

    def client(number: int) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                answer = session.post(
                    f"{server.url}/garments/analyze", files={"file": PHOTO + b"%d" % number}, timeout=SECONDS
                )
                seen[answer.status_code, answer.headers.get("x-model")] += 1

    def wait_for(version: str) -> None:
        before = seen[200, version]
        while seen[200, version] < before + 20:
            assert {status for status, _ in seen} <= {200}, seen
            threading.Event().wait(0.01)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            wait_for("garments/v1")
            # v1 is gone, v3 is new, and the link leads to it
            write(file, text.replace('version = "v1"', 'version = "v3"', 1).replace(
                "[models.garments.v1]", "[models.garments.v3]\nunsure_below = 0.5"))  # fmt: skip
            server.process.send_signal(signal.SIGHUP)
            wait_for("garments/v3")
            write(file, text)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("the settings are applied")
            server.wait_for("the settings are applied")
            wait_for("garments/v1")
        finally:
            stop.set()
        for each in clients:
            each.result(SECONDS)
    assert seen.keys() == {(200, "garments/v1"), (200, "garments/v3")}
    assert_problem(ask(server, "/garments/analyze?version=v3"), 400, "unknown-version")
    assert value(server, "model_info", name="garments/v3") == 0


def test_sighup_with_an_invalid_file_or_version_changes_nothing(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    text = GARMENT_SETTINGS + TABLES
    file = write(tmp_path / "settings.toml", text)
    server = ready(start("--settings", str(file)))
    proof = write(tmp_path / "proof.json", "{}")
    wrong = (
        ("[models.garments.v2]", "[models.garments.v2", "cannot be read"),
        ('version = "v1"', 'version = "v9"', "no version 'v9'"),
        ("unsure_below = 1.0", f'proof_url = "{proof}"', "proof"),
        ("unsure_below = 1.0", 'classes = ["one", "two"]', "classes"),
    )
    for line, instead, sentence in wrong:
        write(file, text.replace(line, instead, 1))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(f"ERROR the settings are not applied: .*{sentence}")
        assert ask(server, "/garments/analyze").headers["x-model"] == "garments/v1"
    write(file, text.replace("[applications.zoo]", "[applications.bears]") + 'title = "Bears"')
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the settings are applied")
    assert "<h1>Bears</h1>" in requests.get(f"{server.url}/bears/", timeout=SECONDS).text
    assert_problem(requests.get(f"{server.url}/zoo/", timeout=SECONDS), 404, "not-found")
    assert "Traceback" not in "".join(server.lines)


def test_sighup_takes_another_checkpoint_where_there_is_one_model(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    file = write(tmp_path / "settings.toml", GARMENT_SETTINGS)
    server = ready(start("--settings", str(file)))
    write(file, BEAR_SETTINGS + "rate_limit = 7\n")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("restart the server to apply another rate_limit")
    server.wait_for("the settings are applied")
    assert ask(server, "/analyze", BEAR).json()["result"] in BEARS
    assert BEARS[0] in requests.get(server.url, timeout=SECONDS).text


def test_a_version_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    text = GARMENT_SETTINGS + TABLES.replace("unsure_below = 1.0", 'classes = ["one", "two"]')
    run = run_app("serve", "--port", "0", "--settings", str(write(tmp_path / "settings.toml", text)))
    assert run.returncode == 1
    assert "error: " in run.stderr.splitlines()[-1]


def test_commands_for_one_model_take_the_first_application(tmp_path: Path) -> None:
    file = str(write(tmp_path / "settings.toml", GARMENT_SETTINGS + TABLES))
    run = run_app("predict", "--settings", file, str(ROOT / "app" / "samples" / "dress.jpg"))
    assert ": dress (" in run.stdout
    run = run_app("fetch", "--settings", file)
    assert [line.partition(":")[0] for line in run.stdout.splitlines()] == [
        *("bears/v1", "garments/v1", "garments/v2")
    ]
    run = run_app("now", "--dry-run", "--settings", file)
    assert (run.returncode, "Vercel gets one model" in run.stderr) == (1, True)


# --- below a path of a proxy ---


@pytest.mark.parametrize("said_by", ["setting", "header"])
def test_a_proxy_may_show_the_server_below_a_path(
    said_by: str, start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Whether the proxy takes the path off or not."""
    line = "https://x.example/a/b/" if said_by == "setting" else "https://x.example"
    more = f'public_url = "{line}"\ntrusted_proxies = ["127.0.0.1"]\n'
    file = write(tmp_path / "settings.toml", GARMENT_SETTINGS + more + TABLES)
    server = ready(start("--settings", str(file)))
    headers = {"x-forwarded-prefix": "/a/b"} if said_by == "header" else {}
    html = headers | {"accept": "text/html"}
    for path in ("/garments/", "/a/b/garments/"):
        assert requests.get(f"{server.url}{path}", headers=headers, timeout=SECONDS).status_code == 200
        document = requests.get(f"{server.url}{path}openapi.json", headers=headers, timeout=SECONDS).json()
        assert document["servers"] == [{"url": "/a/b/garments"}]
        missing = requests.get(f"{server.url}{path}nothing", headers=html, timeout=SECONDS)
        assert missing.status_code == 404
        assert 'href="/a/b/static/style.css"' in missing.text
        assert '<a href="/a/b/garments/">' in missing.text
    for path, target in (("/a/b", "/a/b/"), ("/a/b/zoo", "/a/b/zoo/"), ("/zoo?lang=de", "/zoo/?lang=de")):
        redirect = requests.get(f"{server.url}{path}", headers=headers, timeout=SECONDS)
        assert redirect.url == server.url + target


def test_no_stranger_and_no_odd_prefix_is_believed(
    both: ServerProcess, start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    more = 'trusted_proxies = ["127.0.0.1"]\n'
    trusting = ready(start("--settings", str(write(tmp_path / "s.toml", GARMENT_SETTINGS + more + TABLES))))
    for server, prefix in (
        (both, "/a"),
        (trusting, '/a"><script>'),
        (trusting, "//evil.example"),
        (trusting, "a"),
    ):
        headers = {"x-forwarded-prefix": prefix, "accept": "text/html"}
        missing = requests.get(f"{server.url}/nothing", headers=headers, timeout=SECONDS)
        assert 'href="/static/style.css"' in missing.text
