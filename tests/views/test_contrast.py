"""Words keep a contrast of 4.5:1 (WCAG 2 AA) on every ground they stand on, in both themes and in JupyterLab's own."""

from __future__ import annotations

import re

import pytest

from mqttquic_lab.views.html import stylesheet

Color = tuple[float, float, float]


def rgb(text: str) -> Color:
    digits = text.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * d for d in digits)
    r, g, b = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return r, g, b


def mix(over: Color, share: float, under: Color) -> Color:
    r, g, b = (share * o + (1 - share) * u for o, u in zip(over, under, strict=True))
    return r, g, b


def contrast(one: Color, other: Color) -> float:
    def luminance(color: Color) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def palettes() -> dict[str, dict[str, Color]]:
    css = stylesheet()
    blocks = {"light": css[: css.index("body[data-jp")], "dark": css[css.index("body[data-jp") : css.index("@media")]}
    found = {}
    for theme, block in blocks.items():
        colors = dict(re.findall(r"--mql-(\w+): (?:var\([^,]+, )?(#[0-9a-f]+)", block))
        found[theme] = {name: rgb(value) for name, value in colors.items()}
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # JupyterLab 4's --jp-layout-color0 and --jp-ui-font-color0.
    found["lab light"] = found["light"] | {"bg": white, "fg": black}
    found["lab dark"] = found["dark"] | {"bg": rgb("#111111"), "fg": white}
    return found


@pytest.mark.parametrize("theme", ["light", "dark", "lab light", "lab dark"])
def test_words_can_be_read(theme: str) -> None:
    colors = palettes()[theme]
    share = {
        name: int(percent) / 100
        for name, percent in re.findall(r"--mql-(\w+): color-mix\(in srgb, var\(--mql-fg\) (\d+)%", stylesheet())
    }
    bg, fg = colors["bg"], colors["fg"]
    grounds = {"bg": bg, "bg1": mix(fg, share["bg1"], bg), "bg2": mix(fg, share["bg2"], bg)}
    grounds |= {name: mix(colors[name], 0.08, bg) for name in ("bad", "warn")}
    words = {"fg": fg, "fg2": mix(fg, share["fg2"], bg)}
    for ground, under in grounds.items():
        for word, color in words.items():
            assert contrast(color, under) >= 4.5, f"{word} on {ground}"
    for word in ("ok", "bad", "warn"):
        for ground in ("bg", "bg1", word):
            under = grounds.get(ground, mix(colors[word], 0.08, bg))
            assert contrast(colors[word], under) >= 4.5, f"{word} on {ground}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_can_be_seen(theme: str) -> None:
    colors = palettes()[theme]
    for name in ("c1", "c2", "c3", "bad", "ok", "warn"):
        assert contrast(colors[name], colors["bg"]) >= 2.6, name


def test_the_dark_palette_stands_twice_and_is_the_same() -> None:
    css = stylesheet()
    first = css[css.index("body[data-jp") : css.index("@media")]
    second = css[css.index("@media") :]
    names = re.findall(r"--mql-(\w+): ([^;]+);", first)
    assert len(names) >= 8
    for name, value in names:
        assert f"--mql-{name}: {value};" in second
