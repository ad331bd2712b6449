"""The pages for a browser: those of view/, with the texts, the settings and the answers filled in.

Every value is escaped where it is filled in. Knows nothing of Starlette, nor how an answer came about.
"""

import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from PIL import Image, ImageOps

from app.errors import SettingsError, plain
from app.photos.decode import MAX_PIXELS, MAX_SIDE
from app.serving.card import ModelCard
from app.serving.predictor import Prediction, Score
from app.settings import DEMO, MAX_FEEDBACK, Settings
from app.web.colors import color_rules, ground
from app.web.languages import DEFAULT, choose_language, load_texts
from app.web.preview import draw_preview, preview_tags

VIEW: Final = Path(__file__).parent / "view"
DEMO_SAMPLES: Final = Path(__file__).parent.parent / "samples"
NAMED: Final = 12  # classes in the description: with a hundred, nobody reads them
SHOWN: Final = 5  # classes in an answer before "show all"
LEAST: Final = 0.001  # as in core.js
MAX_SAMPLES: Final = 6  # a row of them; each is 2 kB of the page
THUMB: Final = 108  # px: 72 on a screen with one and a half pixels to each
PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp")

# How each example of the API page sends its key, where keys are needed
KEY_EXAMPLES: Final = {
    "curl": ' -H "X-API-Key: YOUR_KEY"',
    "python": ', headers={"X-API-Key": "YOUR_KEY"}',
    "javascript": ', headers: { "X-API-Key": "YOUR_KEY" }',
    "flutter": '\nrequest.headers["X-API-Key"] = "YOUR_KEY";',
    "swift": '\nrequest.setValue("YOUR_KEY", forHTTPHeaderField: "X-API-Key")',
    "kotlin": '\n    .header("X-API-Key", "YOUR_KEY")',
}


# of the table of requests, for an application
APPLICATION_ROWS: Final = """\
    <tr><th scope="row"><code>POST {path}/predict</code></th><td>Send JSON as for Clipper: <code>{{"input":
    "..."}}</code> with the photo as base64, or <code>input_batch</code> with several. Returns
    <code>output</code>, and in <code>default</code> whether it is the default, since the answer would have
    been late.</td></tr>
    <tr><th scope="row"><code>?version=</code></th><td>Ask one version of the model, with any of these
    requests. The header <code>X-Model</code> names the version of an answer.</td></tr>
"""


class Pages:
    """The pages of one server, made once from its settings.

    `classes` are those that it names; an export says them only when it has been opened.
    """

    def __init__(
        self, settings: Settings, environment: Mapping[str, str] = os.environ, path: str = ""
    ) -> None:
        """Read templates, texts and samples; `path` is that of the page below the server's address.

        Raises SettingsError where there are no such samples."""
        self._settings = settings
        self.classes = settings.labels or settings.classes
        self._exactly = True  # until the model is known
        self._texts = load_texts()
        self._templates = {path.stem: Template(path.read_text("utf-8")) for path in VIEW.glob("*.html")}
        self.samples = _samples(settings)  # in the order in which they are shown
        self.stylesheet = color_rules(settings.color) + (VIEW / "static" / "style.css").read_text("utf-8")
        self._thumbs = [_thumb(file) for file in self.samples]
        self._path = path
        self._preview_tags = preview_tags(settings, environment, path)

    @cached_property
    def preview(self) -> bytes:
        """The picture that stands for the page where a link to it is shared."""
        return draw_preview(self._settings.color, self.samples)

    def opened(self, card: ModelCard) -> None:
        """Take the classes from the card, and how photos must be sent."""
        self.classes = card.classes
        # both are judged by differences that a photo of another size already makes
        self._exactly = card.proof is not None or not card.preprocess.scalable

    def language(self, chosen: str, accepted: str) -> str:
        """Return the language of `lang`, else of a request's `?lang=`, else of its Accept-Language."""
        if self._settings.lang != "auto":
            return self._settings.lang
        return choose_language(chosen, accepted, self._texts)

    def index(self, phase: str, language: str = DEFAULT) -> str:
        """Return the page, while opening the model is in this phase."""
        texts = self._texts[language]
        data = {
            "phase": phase,
            "maxBytes": self._settings.max_upload_mb * 1_000_000,
            "maxPixels": MAX_PIXELS,
            "maxSide": MAX_SIDE,
            "scaling": self._scaling(),
            "texts": texts["script"] | texts["both"],
        }
        if self._settings.feedback:
            data["feedback"] = texts["feedback"] | self._feedback()
        if self._settings.show_proof:
            data["proof"] = texts["proof"]
        script = json.dumps(data, ensure_ascii=False).replace(
            "<", "\\u003c"
        )  # nothing in it ends the element
        return self._fill(
            "index",
            language,
            {f"ground_{scheme}": ground(self._settings.color, scheme) for scheme in ("light", "dark")},
            data=script,
            preview_tags=self._preview_tags,
            samples=self._samples_html(language),
            languages=self._languages_html(language),
            feedback=self._feedback_html(language),
        )

    def _feedback(self) -> dict[str, Any]:
        """Return what the page says before it sends a photo with its right class."""
        place = self._settings.feedback
        host = urlsplit(place).netloc if place.startswith("https://") else ""
        kept = {"days": self._settings.feedback_days, "count": MAX_FEEDBACK}
        return {"host": host.rpartition("@")[2]} if host else kept

    def _feedback_html(self, language: str) -> str:
        if not self._settings.feedback:
            return ""
        text = html.escape(self._words(language)["not_right"])
        return f'<p><button type="button" class="link" id="not-right" data-do="feedback">{text}</button></p>'

    def _scaling(self) -> str:
        """Which photos the browser makes smaller: "large" ones, those "over" a limit, or "never" any."""
        if self._settings.exif == "ignore":
            return "never"  # a browser turns the photos that it scales
        return "over" if self._exactly else "large"

    def answer(self, prediction: Prediction, language: str = DEFAULT) -> str:
        """The answer to a form that was sent without JavaScript, as app.js shows it."""
        words, scores = self._words(language), prediction.predictions
        headline = words["unsure"] if prediction.unsure else prediction.result or words["nothing"]
        certain = headline == scores[0].label  # else it is in the list only
        hint = words["unsureHint"].format(label=f"\u2068{scores[0].label}\u2069") if prediction.unsure else ""
        rest = ""
        if len(scores) > SHOWN:
            summary = html.escape(words["all"].format(count=len(scores)))
            rows = _rows(scores[SHOWN:])
            rest = f'<details id="rest"><summary>{summary}</summary><ol class="scores">{rows}</ol></details>'
        return self._fill(
            "answer",
            language,
            {"headline": headline},
            confidence=_percent(prediction.confidence) if certain else "",
            width=f"{prediction.confidence:.1%}" if certain else "0",
            hint=f'<p class="soft">{html.escape(hint)}</p>' if hint else "",
            rows=_rows(scores[certain:SHOWN]),
            rest=rest,
        )

    def api(self, card: ModelCard | None) -> str:
        """Return the page for programs; `card` is None while the model is being opened."""
        words = json.loads((VIEW / "api.json").read_text("utf-8"))  # in English alone, as its text is
        origins = self._settings.cors_origins
        model = f"<p>{html.escape(words['model_opening'])}</p>" if card is None else _card_html(card)
        keys = bool(self._settings.api_keys)
        examples = {f"key_{language}": code if keys else "" for language, code in KEY_EXAMPLES.items()}
        note = f'<p class="note">{html.escape(words["key_note"])}</p>' if keys else ""
        values = {
            "cors_note": words["cors_open" if origins else "cors_closed"].format(origins=", ".join(origins))
        }
        rows = APPLICATION_ROWS.format(path=html.escape(self._path)) if self._path else ""
        return self._fill(
            "api", DEFAULT, words | examples | values, model=model, key_note=note, application=rows
        )

    def manifest(self) -> dict[str, Any]:
        """Return the manifest for phones to install the page (W3C Web Application Manifest)."""
        icon: dict[str, str] = {"src": "static/icon.svg", "sizes": "any", "type": "image/svg+xml"}
        bitmaps = [
            {"src": f"static/icon-{side}.png", "sizes": f"{side}x{side}", "type": "image/png"}
            for side in (192, 512)
        ]
        return {
            "name": self._settings.title,
            "short_name": self._settings.title,
            "description": self._description(self._words(self.language("", ""))),
            "start_url": "./",
            "display": "standalone",
            "background_color": ground(self._settings.color, "light"),
            "theme_color": ground(self._settings.color, "light"),
            "icons": [icon, *bitmaps],
        }

    def _words(self, language: str) -> dict[str, str]:
        texts = self._texts[language]
        return texts["page"] | texts["both"]  # type: ignore[no-any-return]

    def _fill(self, name: str, language: str, values: Mapping[str, str], **fragments: str) -> str:
        """A template with words and values, escaped here, and with fragments, which are HTML already."""
        words = self._words(language)
        title = self._settings.title if self._settings.is_set("title") else words["default_title"]
        words |= {"title": title, "description": self._description(words), **values}
        escaped = {key: html.escape(value) for key, value in words.items()}
        return self._templates[name].substitute(escaped | fragments)

    def _description(self, words: Mapping[str, str]) -> str:
        if self._settings.description:
            return self._settings.description
        if not self.classes:
            return words["tells_nothing_yet"]
        named = ", ".join(self.classes[:NAMED])
        if len(self.classes) > NAMED:
            named += " " + words["more"].format(count=len(self.classes) - NAMED)
        return words["tells"].format(classes=named)

    def _languages_html(self, language: str) -> str:
        """Return links to the page in each language; none where the settings fix it."""
        if self._settings.lang != "auto":
            return ""
        links = " ".join(
            f'<a href="?lang={code}" hreflang="{code}" lang="{code}">{texts["page"]["language"]}</a>'
            for code, texts in self._texts.items()
        )
        current = self._texts[language]["page"]["language"]
        return f'<details class="languages"><summary>{current}</summary><p>{links}</p></details>'

    def _samples_html(self, language: str) -> str:
        if not self.samples:
            return ""
        words = self._words(language)
        buttons = []
        for number, (file, thumb) in enumerate(zip(self.samples, self._thumbs, strict=True)):
            label = words["sample"].format(name=file.stem.replace("-", " ").replace("_", " "))
            buttons.append(
                f'<li><button type="button" data-do="sample" value="samples/{number}">'
                f'<img width="72" height="72" alt="{html.escape(label)}" src="{thumb}"></button></li>'
            )
        heading = f'<p class="soft">{html.escape(words["samples"])}</p>'
        row = f"{heading}<ul>{''.join(buttons)}</ul>"
        return f'  <div class="samples" data-in="idle answer problem">{row}</div>\n'


def _samples(settings: Settings) -> list[Path]:
    """The photos of the setting `samples`; the demo has its own."""
    if not settings.samples:
        demo = settings.model_url == str(DEMO)
        return sorted(DEMO_SAMPLES.iterdir()) if demo else []
    folder = Path(settings.samples)
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in PICTURES)
    if not files:
        raise SettingsError(
            f"samples is {folder}, where there are no photos ({', '.join(PICTURES)}); name a folder of up to "
            f"{MAX_SAMPLES} photos, or take the setting out."
        )
    return files[:MAX_SAMPLES]


def _thumb(file: Path) -> str:
    """A photo as a small square in a data URL: no request of its own."""
    try:
        with Image.open(file) as image:
            small = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (THUMB, THUMB))
    except (OSError, Image.DecompressionBombError) as error:
        raise SettingsError(f"The sample {file} is not a photo that can be read: {plain(error)}.") from error
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rows(scores: Sequence[Score]) -> str:
    """The rows of an answer, as app.js makes them."""
    return "".join(
        f'<li><bdi>{html.escape(s.label)}</bdi><svg class="bar" aria-hidden="true">'
        f'<rect width="{s.score:.1%}"/></svg><span>{_percent(s.score)}</span></li>'
        for s in scores
    )


def _percent(score: float) -> str:
    """As core.js: nothing is certain, and nothing impossible."""
    if score > 1 - LEAST:
        return f"&gt;{1 - LEAST:.1%}"
    return f"&lt;{LEAST:.1%}" if score < LEAST else f"{score:.1%}"


def _card_html(card: ModelCard) -> str:
    """Return the model card as a table without empty values; nested values line by line."""
    rows = [
        f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th><td>{text}</td></tr>'
        for name, value in msgspec.to_builtins(card).items()
        if (text := _value_html(value))
    ]
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _value_html(value: Any) -> str:
    """Return a value of the card; nothing for None and empty values."""
    if value is None:
        return ""
    if isinstance(value, dict):
        lines = ((name.replace("_", " "), _value_html(inner)) for name, inner in value.items())
        return "<br>".join(f"{html.escape(name)}: {text}" for name, text in lines if text)
    if isinstance(value, list | tuple):
        return ", ".join(map(_value_html, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))
