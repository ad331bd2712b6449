"""The pages as they leave the server, without a browser."""

import ast
import io
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import requests
from msgspec.structs import replace
from PIL import Image

from app import errors
from app.errors import SettingsError
from app.serving.card import ModelCard, Pixels
from app.serving.precision import Precision
from app.serving.predictor import Prediction, Score
from app.serving.proof import ProofResult
from app.settings import DEMO, HINTS, Settings
from app.settings_file import load_settings
from app.web.hosts import frame_origins
from app.web.languages import choose_language, load_texts
from app.web.pages import VIEW, Pages
from tests.conftest import BEARS, ROOT, SECONDS, ServerProcess, image_bytes

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
PHOTO = image_bytes("a05_640x480.jpg")
PIXELS = Pixels(("Resize(224)",), (224, 224), (0.5,) * 3, (0.25,) * 3, gray=False, scalable=True)
CARD = ModelCard(
    "resnet34",
    BEARS,
    2,
    "save",
    "onnx",
    PIXELS,
    "softmax",
    "turn",
    None,
    Precision("float32", "default"),
    "0" * 64,
    1,
    {},
)
LANGUAGES = load_texts()
TEXTS: Any = LANGUAGES["en"]


def settings(**changes: Any) -> Settings:
    return replace(Settings(model_url="x.pth", classes=BEARS), **changes)


def data_of(page: str) -> Any:
    """What the page hands to its script."""
    return json.loads(re.search(r'<script type="application/json" id="page">(.*?)</script>', page)[1])  # type: ignore[index]


def prediction(*scores: tuple[str, float], unsure: bool = False) -> Prediction:
    return Prediction(scores[0][0], scores[0][1], None, unsure, tuple(Score(*score) for score in scores))


def test_a_form_that_a_browser_sends_by_itself_gets_a_page_and_a_program_gets_json(
    bears: ServerProcess,
) -> None:
    form = {"files": {"file": ("x.jpg", PHOTO)}, "timeout": SECONDS}
    page = requests.post(f"{bears.url}/analyze", headers=BROWSER, **form)
    assert page.headers["content-type"].startswith("text/html")
    assert bears.post(PHOTO).json()["result"] in page.text
    both = requests.post(f"{bears.url}/analyze", headers={"Accept": "application/json, text/html"}, **form)
    assert both.json() == bears.post(PHOTO).json()
    assert "Accept" in both.headers["vary"]


def test_the_values_of_the_settings_are_escaped_wherever_they_stand() -> None:
    evil = "</script><script>alert('\"&</title>"
    page = Pages(settings(title=evil, description=evil, classes=(evil, "b", "c")))
    for text in (page.index("ready"), page.api(None), page.answer(prediction((evil, 0.9), ("b", 0.1)))):
        assert "<script>alert" not in text
        assert text.count("</title>") == 1


def test_the_classes_are_the_description_unless_there_is_one() -> None:
    assert "Can tell apart: black, grizzly, teddys." in Pages(settings()).index("ready")
    assert "Which bear?" in Pages(settings(description="Which bear?")).index("ready")
    many = Pages(settings(classes=tuple(f"c{i}" for i in range(100)))).index("ready")
    assert "c11 and 88 more." in many and "c12" not in many


HOSTS = {  # how each host says where an application is
    "SPACE_HOST": ("me-bears.hf.space", "https://me-bears.hf.space"),
    "VERCEL_PROJECT_PRODUCTION_URL": ("bears.vercel.app", "https://bears.vercel.app"),
    "RENDER_EXTERNAL_URL": ("https://bears.onrender.com", "https://bears.onrender.com"),
    "RAILWAY_PUBLIC_DOMAIN": ("bears.up.railway.app", "https://bears.up.railway.app"),
    "FLY_APP_NAME": ("bears", "https://bears.fly.dev"),
}


@pytest.mark.parametrize("variable", HOSTS)
def test_links_are_previewed_with_the_address_that_the_host_says(variable: str) -> None:
    said, address = HOSTS[variable]
    page = Pages(settings(), {variable: said}).index("ready")
    assert f'<meta property="og:image" content="{address}/preview.jpg">' in page
    assert f'<link rel="canonical" href="{address}/">' in page
    assert "summary_large_image" in page
    mine = Pages(settings(public_url="https://mine.example/"), {variable: said}).index("ready")
    assert "https://mine.example/preview.jpg" in mine and address not in mine
    assert "og:image" not in Pages(settings(), {variable: 'x"><script>'}).index("ready")


def test_links_have_no_picture_where_the_address_is_unknown(bears: ServerProcess) -> None:
    assert '<meta property="og:title" content="What&#x27;s in this photo?">' in Pages(settings()).index(
        "ready"
    )
    answer = requests.get(bears.url, headers={"Host": "elsewhere.example"}, timeout=SECONDS)
    assert "elsewhere" not in answer.text and "og:image" not in answer.text


def test_a_space_may_be_shown_by_hugging_face_and_any_site_of_the_settings() -> None:
    assert frame_origins(settings(), {}) == ()
    assert frame_origins(settings(), {"SPACE_HOST": "me-bears.hf.space"}) == ("https://huggingface.co",)
    others = settings(frame_origins=("https://school.example",))
    assert frame_origins(others, {"SPACE_HOST": "me-bears.hf.space"}) == ("https://school.example",)


def test_the_worker_keeps_every_script_of_the_page() -> None:
    shell = (VIEW / "static" / "worker.js").read_text().partition("SHELL = [")[2].partition("]")[0]
    kept = set(re.findall(r"static/(\w+)\.js", shell))
    assert kept == {path.stem for path in (VIEW / "static").glob("*.js")} - {"worker", "api"}


def test_the_picture_of_a_link_shows_the_samples_in_the_color_of_the_page(
    bears: ServerProcess, tmp_path: Path
) -> None:
    answer = requests.get(f"{bears.url}/preview.jpg", timeout=SECONDS)
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (1200, 630)
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (300, 200), color).save(tmp_path / f"{name}.png")
    drawn = Pages(settings(samples=str(tmp_path), color="#00aa00")).preview
    assert len(drawn) < 300_000  # over that, messengers show none
    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    for place, color in (((400, 315), (255, 0, 0)), ((800, 315), (0, 0, 255)), ((120, 69), (0, 133, 0))):
        assert picture.getpixel(place) == pytest.approx(color, abs=12)  # photos, and the first corner


def test_the_page_can_be_installed(bears: ServerProcess) -> None:
    page = requests.get(bears.url, timeout=SECONDS)
    assert 'rel="manifest" href="manifest.webmanifest"' in page.text
    manifest = requests.get(f"{bears.url}/manifest.webmanifest", timeout=SECONDS)
    assert manifest.headers["content-type"] == "application/manifest+json"
    assert manifest.json()["name"] == "What's in this photo?"
    for icon in manifest.json()["icons"]:
        answer = requests.get(f"{bears.url}/{icon['src']}", timeout=SECONDS)
        assert answer.headers["content-type"] == icon["type"]
        if icon["type"] == "image/png":
            width, height = Image.open(io.BytesIO(answer.content)).size
            assert icon["sizes"] == f"{width}x{height}"


def test_nothing_comes_from_elsewhere_and_no_script_or_style_is_inline(bears: ServerProcess) -> None:
    for path in ("/", "/api", "/static/style.css", "/static/app.js", "/static/api.js"):
        text = requests.get(bears.url + path, timeout=SECONDS).text
        foreign = re.findall(r"""(?:(?:src|href)="|url\(|import "|fetch\(")(?:https?:)?//""", text)
        assert foreign == []
        assert not re.search(r"<style|\sstyle=|\son\w+=", text)
        assert re.findall(r"<script(?! type=\"application/json\")(?![^>]*src=)", text) == []


def test_the_api_page_shows_the_model_card(bears: ServerProcess) -> None:
    page = requests.get(f"{bears.url}/api", timeout=SECONDS).text
    card = requests.get(f"{bears.url}/model", timeout=SECONDS).json()
    for value in (card["architecture"], card["sha256"], "black, grizzly, teddys"):
        assert value in page
    assert "openapi.json" in page
    assert "<td></td>" not in page and "None" not in page
    assert "still loading" in Pages(settings()).api(None)


def test_the_api_page_says_whose_scripts_may_read_the_answers() -> None:
    assert "cors_origins = [&quot;https://example.com&quot;]" in Pages(settings()).api(None)
    page = Pages(settings(cors_origins=("https://school.example",))).api(None)
    assert "may read the answers: https://school.example." in page


def test_an_unsure_answer_without_javascript_says_so() -> None:
    page = Pages(settings()).answer(prediction(("black", 0.4), ("grizzly", 0.3), unsure=True))
    assert "Not sure" in page and "\u2068black\u2069 is closest" in page
    assert "<title>Not sure" in page


def test_no_answer_is_certain_and_none_impossible() -> None:
    page = Pages(settings()).answer(prediction(("black", 0.99997), ("grizzly", 0.00003)))
    assert "<p>&gt;99.9%</p>" in page and "100" not in re.sub("width=[^/]+", "", page)
    assert "<span>&lt;0.1%</span>" in page


def test_the_demo_brings_its_samples_and_another_model_does_not(tmp_path: Path) -> None:
    assert len(Pages(load_settings(environment={})).samples) == 4
    assert Pages(settings()).samples == []
    assert settings().model_url != str(DEMO)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red-bear.png")
    page = Pages(settings(samples=str(tmp_path))).index("ready")
    assert "Try the sample photo red bear" in page and 'value="samples/0"' in page


def test_a_folder_without_photos_and_a_photo_that_is_none_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="where there are no photos"):
        Pages(settings(samples=str(tmp_path)))
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    with pytest.raises(SettingsError, match=r"x\.jpg is not a photo that can be read"):
        Pages(settings(samples=str(tmp_path)))


def test_a_sample_is_served_and_what_is_none_is_not(bears: ServerProcess) -> None:
    assert requests.get(f"{bears.url}/samples/0", timeout=SECONDS).status_code == 404


def test_every_code_of_a_refused_photo_has_its_words() -> None:
    """The codes are read off the source: the attributes in errors.py, and what is raised with a code."""
    kinds = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    requests = {name for name, kind in kinds.items() if issubclass(kind, errors.RequestError)}
    codes = {kinds[name].code for name in requests}
    for module in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in requests and len(node.args) > 1:
                codes.add(ast.literal_eval(node.args[1]))
    assert {"corrupt-image", "truncated-image", "empty-file", "model-loading", "overloaded"} <= codes
    for_programs = {
        "unknown-label",
        "unknown-version",
        "not-an-image",
        "url-not-allowed",
        "fetch-failed",
        "fetch-timeout",
    }
    assert codes - for_programs - TEXTS["script"]["problems"].keys() == set()


def leaves(texts: Any, path: str = "") -> dict[str, str]:
    """Every text by its place."""
    if isinstance(texts, str):
        return {path: texts}
    items = texts.items() if isinstance(texts, dict) else enumerate(texts)
    return {place: text for key, value in items for place, text in leaves(value, f"{path}/{key}").items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_text_with_its_placeholders(language: str) -> None:
    english, texts = leaves(TEXTS), leaves(LANGUAGES[language])
    assert texts.keys() == english.keys()
    for place, text in texts.items():
        assert text.strip() and sorted(re.findall(r"\{\w+\}", text)) == sorted(
            re.findall(r"\{\w+\}", english[place])
        ), place
    assert texts["/page/lang"] == language


def test_the_languages_are_those_of_the_setting() -> None:
    assert {"auto", *LANGUAGES} == set(typing.get_args(typing.get_args(HINTS["lang"])[0]))


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("pt-BR", "pt"),
        ("xx, fr;q=0.2, es;q=0.7", "es"),
        ("zh-Hant-TW;q=0.5", "zh"),
        ("de;q=0", "en"),
        ("de;q=high", "en"),
        ("", "en"),
        ("*", "en"),
    ],
)
def test_the_language_is_the_first_accepted_one_that_there_is(accepted: str, language: str) -> None:
    assert choose_language("", accepted, LANGUAGES) == language
    assert choose_language("ja", accepted, LANGUAGES) == "ja"
    assert choose_language("../x", accepted, LANGUAGES) == language


def test_a_browser_gets_the_page_in_its_language_unless_the_settings_fix_it(bears: ServerProcess) -> None:
    headers = {"Accept-Language": "ar"}
    page = requests.get(bears.url, headers=headers, timeout=SECONDS)
    assert '<html lang="ar" dir="rtl">' in page.text and LANGUAGES["ar"]["page"]["default_title"] in page.text
    assert "Accept-Language" in page.headers["vary"]
    form = {"files": {"file": ("x.jpg", PHOTO)}, "headers": BROWSER | headers, "timeout": SECONDS}
    assert LANGUAGES["ar"]["both"]["another"] in requests.post(f"{bears.url}/analyze", **form).text
    german = requests.post(f"{bears.url}/analyze?lang=de", **form).text
    assert LANGUAGES["de"]["both"]["another"] in german
    fixed = Pages(settings(lang="de", title="Bären"))
    assert fixed.language("fr", "fr") == "de"
    page_of_fixed = fixed.index("ready", "de")
    assert "<title>Bären" in page_of_fixed and 'hreflang="fr"' not in page_of_fixed


def test_every_text_is_used_and_every_used_text_is_there() -> None:
    script = "".join(path.read_text() for path in (VIEW / "static").glob("*.js"))
    used = set(re.findall(r"\btexts\.(\w+)", script))
    assert used == TEXTS["script"].keys() | TEXTS["both"].keys()
    shown = (
        "".join(path.read_text() for path in VIEW.glob("*.html"))
        + (ROOT / "app" / "web" / "pages.py").read_text()
    )
    for name in TEXTS["page"]:
        assert re.search(rf"\${name}\b|\"{name}\"|'{name}'", shown), name


def test_a_browser_asks_again_and_is_told_that_nothing_has_changed(bears: ServerProcess) -> None:
    first = requests.get(f"{bears.url}/static/app.js", timeout=SECONDS)
    assert (first.headers["cache-control"], first.headers["content-encoding"]) == ("no-cache", "gzip")
    headers = {"If-None-Match": first.headers["etag"]}
    again = requests.get(f"{bears.url}/static/app.js", headers=headers, timeout=SECONDS)
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/", "/api", "/static/style.css"):
        assert requests.get(bears.url + path, timeout=SECONDS).headers["cache-control"] == "no-cache"


def test_the_page_knows_the_limits_of_its_server() -> None:
    data = data_of(Pages(settings(max_upload_mb=4)).index("downloading"))
    assert (data["maxBytes"], data["phase"]) == (4_000_000, "downloading")
    assert (data["maxPixels"], data["maxSide"]) == (50_000_000, 20_000)


def test_photos_are_scaled_where_that_does_not_change_the_answer() -> None:
    def scaling(pages: Pages, **changes: Any) -> Any:
        if changes:
            pages.opened(replace(CARD, **changes))
        return data_of(pages.index("ready"))["scaling"]

    assert scaling(Pages(settings())) == "over"  # it is not known yet what is served
    assert scaling(Pages(settings()), proof=None) == "large"
    assert scaling(Pages(settings()), proof=ProofResult(3, "x", 0.0, 0)) == "over"
    assert scaling(Pages(settings()), preprocess=replace(PIXELS, scalable=False)) == "over"
    assert scaling(Pages(settings(exif="ignore")), proof=None) == "never"
