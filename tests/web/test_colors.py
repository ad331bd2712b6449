"""Any color of the settings can be read; the oracle are figures that others published."""

import colorsys
import re

import pytest

from app.web.colors import contrast, ground, on, readable, surface
from app.web.pages import VIEW


def test_the_contrast_is_that_of_wcag() -> None:
    """W3C's understanding documents and WebAIM's checker give these."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#0000ff", "#ffffff") == pytest.approx(8.59, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_hue_is_made_readable_and_a_readable_one_is_left_alone(scheme: str) -> None:
    for hue in range(0, 360, 10):
        for lightness in (0.0, 0.3, 0.5, 0.7, 1.0):
            channels = colorsys.hls_to_rgb(hue / 360, lightness, 1)
            color = "#" + "".join(f"{round(channel * 255):02x}" for channel in channels)
            assert contrast(on(color), color) >= 4.5
            text = readable(color, scheme)
            behind = ground(color, scheme), surface(color, scheme)
            assert min(contrast(text, other) for other in behind) >= 4.5
            if min(contrast(color, other) for other in behind) >= 4.6:
                assert text == color


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_other_text_can_be_read_on_every_ground(scheme: str) -> None:
    """Those of style.css, whatever the accent."""
    light, dark = (VIEW / "static" / "style.css").read_text().split("prefers-color-scheme: dark")[:2]
    rules = light if scheme == "light" else dark
    texts = [re.search(rf"--{name}: (#[0-9a-f]{{6}})", rules)[1] for name in ("text", "soft", "bad")]  # type: ignore[index]
    for accent in ("#000000", "#ffffff", "#ff0000", "#00ff00", "#0000ff", "#ffee00"):
        for behind in (ground(accent, scheme), surface(accent, scheme)):
            assert min(contrast(text, behind) for text in texts) >= 4.5
