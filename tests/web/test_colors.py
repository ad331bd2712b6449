"""Any color of the settings can be read; the oracle are figures that others published."""

import colorsys

import pytest

from app.web.colors import GROUNDS, SURFACES, contrast, on, readable


def test_the_contrast_is_that_of_wcag() -> None:
    """W3C's understanding documents and WebAIM's checker give these."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#0000ff", "#ffffff") == pytest.approx(8.59, abs=0.005)


@pytest.mark.parametrize("scheme", GROUNDS)
def test_every_hue_is_made_readable_and_a_readable_one_is_left_alone(scheme: str) -> None:
    for hue in range(0, 360, 10):
        for lightness in (0.0, 0.3, 0.5, 0.7, 1.0):
            channels = colorsys.hls_to_rgb(hue / 360, lightness, 1)
            color = "#" + "".join(f"{round(channel * 255):02x}" for channel in channels)
            assert contrast(on(color), color) >= 4.5
            text = readable(color, scheme)
            assert min(contrast(text, ground[scheme]) for ground in (GROUNDS, SURFACES)) >= 4.5
            assert readable(text, scheme) == text


def test_the_surfaces_are_those_of_the_stylesheet() -> None:
    from app.web.pages import VIEW

    light, dark = (VIEW / "static" / "style.css").read_text().split("prefers-color-scheme: dark")[:2]
    short = {"#fff": "#ffffff"}
    for rules, scheme in ((light, "light"), (dark, "dark")):
        found = rules.partition("--surface: ")[2].partition(";")[0]
        assert short.get(found, found) == SURFACES[scheme]
