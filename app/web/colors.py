"""All colors from the one in the settings, readable on light and dark ground by WCAG's measure."""

from typing import Final

PAPER: Final = {"light": "#ffffff", "dark": "#0f1013"}  # before it is tinted
TINT: Final = {"light": 0.045, "dark": 0.07}  # of the accent in the ground: so that the page has its color
SURFACE: Final = {"light": 0.0, "dark": 0.13}  # of the accent in the surfaces on the ground
CONTRAST: Final = 4.6  # WCAG 2.2 asks text for 4.5; a little more for rounding
STEPS: Final = 50  # towards black or white: finer than the eye sees

Color = tuple[float, float, float]  # sRGB, 0..255


def color_rules(accent: str) -> str:
    """The CSS custom properties that style.css uses, for an accent "#rrggbb"."""
    light, dark = (
        f"--ground: {ground(accent, scheme)}; --surface: {surface(accent, scheme)}; --accent: {accent}; "
        f"--on-accent: {on(accent)}; --accent-text: {readable(accent, scheme)};"
        for scheme in ("light", "dark")
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def ground(accent: str, scheme: str) -> str:
    """The color behind everything."""
    return _mix(PAPER[scheme], accent, TINT[scheme])


def surface(accent: str, scheme: str) -> str:
    """Return the color of the surfaces on the ground."""
    return _mix(PAPER[scheme], accent, SURFACE[scheme])


def on(color: str) -> str:
    """Black or white, whichever can be read better on a color."""
    return max("#ffffff", "#000000", key=lambda text: contrast(text, color))


def readable(accent: str, scheme: str) -> str:
    """The accent, made darker or lighter until it can be read on the ground and the surfaces of a scheme."""
    target = "#000000" if scheme == "light" else "#ffffff"
    behind = ground(accent, scheme), surface(accent, scheme)
    for step in range(STEPS + 1):
        mixed = _mix(accent, target, step / STEPS)
        if all(contrast(mixed, color) >= CONTRAST for color in behind):
            return mixed
    return target


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colors, from 1 to 21 (WCAG 2.2, "contrast ratio")."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    """WCAG 2.2, "relative luminance"."""
    shares = [value / 255 for value in _channels(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return sum(c * weight for c, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def _channels(color: str) -> Color:
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def _mix(color: str, target: str, share: float) -> str:
    pairs = zip(_channels(color), _channels(target), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
