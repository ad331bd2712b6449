"""The page in a real Chromium, and how each state of it is reached: for the tests and for the screenshots."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "app" / "samples"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWPORTS = {
    "small-phone": (360, 740),
    "phone": (390, 844),
    "tablet": (768, 1024),
    "desktop": (1280, 800),
}
SECONDS = 180  # the deadline of every wait for an event

State = Callable[[Any, str], None]  # (page, address of a ready server) -> the page is in that state


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--use-fake-device-for-media-stream",  # a camera that shows a test picture
            ],
        )
        yield browser
        browser.close()


def new_page(browser: Any, viewport: str = "desktop", scheme: str = "light", **options: Any) -> Any:
    """A page in a context of its own; phones have a touch screen."""
    width, height = VIEWPORTS[viewport]
    touch = viewport != "desktop"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=touch,
        is_mobile=touch,
        reduced_motion="reduce",
        **options,
    )
    context.set_default_timeout(SECONDS * 1000)
    return context.new_page()


def choose(page: Any, file: Any) -> None:
    """Choose a photo or several, each a path or a dict, as a click on the button does."""
    page.locator("#file").set_input_files(file)


def wait_until(page: Any, condition: str, argument: Any = None) -> None:
    """Wait for a function of JavaScript to return true.

    Playwright's own wait_for_function evaluates text at every poll, which the page's policy forbids.
    """
    page.evaluate(
        f"(argument) => new Promise((done) => {{ const look = async () => ((await ({condition})(argument))"
        " ? done() : requestAnimationFrame(look)); look(); })",
        argument,
    )


def in_state(page: Any, state: str) -> None:
    page.locator(f"body[data-state={state}]").wait_for()


def refuse(page: Any, path: str, status: int, code: str, **headers: str) -> None:
    """Let the server's answer be a refusal, in the form that its refusals have."""
    body = {"status": status, "code": code, "detail": "so it is", "request_id": "0123456789abcdef"}
    page.route(
        f"**{path}",
        lambda route: route.fulfill(
            status=status, headers=headers, content_type="application/problem+json", body=json.dumps(body)
        ),
    )


# --- the states --------------------------------------------------------------------------------------------


def idle(page: Any, url: str) -> None:
    page.goto(url)


def starting(page: Any, url: str) -> None:
    """What a server says while it downloads its model."""
    progress = json.dumps({"phase": "downloading", "percent": 40})
    page.route("**/readyz", lambda route: route.fulfill(status=503, body=progress))
    refuse(page, "/analyze", 503, "model-loading", **{"retry-after": "1"})
    page.goto(url)
    choose(page, SAMPLES / "dress.jpg")
    page.get_by_text("downloading the model, 40").first.wait_for()


def working(page: Any, url: str) -> None:
    """A photo that is being looked at, for ever."""
    page.goto(url)
    page.route("**/analyze", lambda route: None)
    choose(page, SAMPLES / "dress.jpg")
    in_state(page, "working")


def waiting(page: Any, url: str) -> None:
    """A busy server, which said when to come again."""
    page.goto(url)
    refuse(page, "/analyze", 503, "overloaded", **{"retry-after": "30"})
    choose(page, SAMPLES / "dress.jpg")
    in_state(page, "waiting")


def offline(page: Any, url: str) -> None:
    page.goto(url)
    page.context.set_offline(True)
    choose(page, SAMPLES / "dress.jpg")
    in_state(page, "problem")


def refused(page: Any, url: str) -> None:
    """A file that is no photo."""
    page.goto(url)
    choose(page, ROOT / "README.md")
    in_state(page, "problem")


def broken(page: Any, url: str) -> None:
    """A mistake of the server."""
    page.goto(url)
    refuse(page, "/analyze", 500, "internal")
    choose(page, SAMPLES / "dress.jpg")
    in_state(page, "problem")


def answer(page: Any, url: str) -> None:
    page.goto(url)
    choose(page, SAMPLES / "shoes.jpg")
    in_state(page, "answer")


def unsure(page: Any, url: str) -> None:
    """What a server says with an `unsure_below` above its confidence."""
    page.goto(url)
    scores = {"pants": 0.31, "skirt": 0.27, "dress": 0.21, "shorts": 0.12, "shirt": 0.09}
    predictions = [{"label": label, "score": score} for label, score in scores.items()]
    answered = {"result": "pants", "confidence": 0.31, "unsure": True, "predictions": predictions}
    page.route("**/analyze", lambda route: route.fulfill(json=answered))
    choose(page, SAMPLES / "pants.jpg")
    in_state(page, "answer")


def all_classes(page: Any, url: str) -> None:
    answer(page, url)
    page.get_by_text("Show all").click()


def why(page: Any, url: str) -> None:
    answer(page, url)
    page.get_by_role("button", name="Why?").click()
    page.locator("#reasons").wait_for()


def several(page: Any, url: str) -> None:
    """Four photos, one of which is none."""
    page.goto(url)
    choose(page, [*sorted(SAMPLES.iterdir())[:3], ROOT / "README.md"])
    page.get_by_text("4 of 4 photos").first.wait_for()


def live(page: Any, url: str) -> None:
    """The camera, here Chromium's fake one."""
    page.context.grant_permissions(["camera"])
    page.goto(url)
    page.get_by_role("button", name="Live camera").click()
    page.locator("#result").wait_for()


def share(page: Any, url: str) -> None:
    answer(page, url)
    page.get_by_role("button", name="Share").click()
    page.get_by_role("dialog").wait_for()


def api(page: Any, url: str) -> None:
    page.goto(f"{url}/api")
    page.get_by_role("button", name="Copy").first.wait_for()


STATES: dict[str, State] = {
    state.__name__: state
    for state in (
        *(idle, starting, working, waiting, offline, refused, broken),
        *(answer, unsure, all_classes, why, several, live, share, api),
    )
}
