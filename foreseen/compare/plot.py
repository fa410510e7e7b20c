"""A comparison → an SVG: histograms of how far answers are apart, and how long they took on either side.

Written here in a hundred lines, since neither a proxy nor an operator's machine has matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from msgspec import Struct

from foreseen.compare.comparison import Comparison
from foreseen.types import Array

WIDTH, HEIGHT, MARGIN = 380, 260, 46
BINS = 40
SMALLEST = 1e-9
"""Differences below this are drawn here: a logarithmic axis has no zero."""
COLOURS = ("#4c72b0", "#c44e52")


class Panel(Struct, frozen=True):
    """One histogram over a logarithmic axis, of one series or more."""

    title: str
    unit: str
    series: tuple[tuple[str, Array], ...]


def draw(comparison: Comparison, path: Path, title: str, old: str = "old", new: str = "new") -> None:
    """Write an SVG to `path`. Raises OSError."""
    panels = [
        Panel("cosine distance", "1 - cosine", (("", 1 - comparison.cosines.values),)),
        Panel("largest difference", "of two values", (("", comparison.differences.values),)),
        Panel(
            "latency",
            "ms",
            ((old, comparison.seconds_old.values * 1e3), (new, comparison.seconds_new.values * 1e3)),
        ),
    ]
    path.write_text(svg(title, [panel for panel in panels if any(len(values) for _, values in panel.series)]))


def svg(title: str, panels: Sequence[Panel]) -> str:
    """The panels beside each other."""
    width, height = WIDTH * max(1, len(panels)), HEIGHT + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 18, title, size=14),
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({place * WIDTH},30)">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> str:
    series = [(name, np.maximum(values, SMALLEST)) for name, values in panel.series if len(values)]
    low, high = _decades([values for _, values in series])
    edges = np.logspace(low, high, BINS + 1)
    counts = [np.histogram(values, edges)[0] / len(values) for _, values in series]
    top = max(float(count.max()) for count in counts) or 1.0
    inner, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    parts = [_text(WIDTH / 2, 16, panel.title, size=12), _text(WIDTH / 2, HEIGHT - 8, panel.unit)]
    for at, ((name, _), count) in enumerate(zip(series, counts, strict=True)):
        parts += _bars(count / top, inner, tall, COLOURS[at % len(COLOURS)])
        if name:
            parts.append(_text(WIDTH - MARGIN, 30 + 14 * at, name, anchor="end", fill=COLOURS[at % len(COLOURS)]))
    parts.append(f'<path d="M{MARGIN} {MARGIN}v{tall}h{inner}" fill="none" stroke="black"/>')
    step = max(1, (high - low) // 6)
    for power in range(low, high + 1, step):
        x = MARGIN + inner * (power - low) / (high - low)
        parts.append(f'<path d="M{x:.1f} {HEIGHT - MARGIN}v4" stroke="black"/>')
        parts.append(_text(x, HEIGHT - MARGIN + 16, f"{10.0**power:g}"))
    parts.append(_text(MARGIN - 4, MARGIN + 4, f"{top:.0%}", anchor="end"))
    return "".join(parts)


def _bars(heights: Array, inner: float, tall: float, colour: str) -> list[str]:
    width = inner / BINS
    return [
        f'<rect x="{MARGIN + at * width:.1f}" y="{MARGIN + tall * (1 - height):.1f}" width="{width:.1f}" '
        f'height="{tall * height:.1f}" fill="{colour}" fill-opacity="0.55"/>'
        for at, height in enumerate(heights.tolist())
        if height > 0
    ]


def _decades(series: Sequence[Array]) -> tuple[int, int]:
    """The powers of ten that hold all finite values."""
    finite = np.concatenate([values[np.isfinite(values)] for values in series])
    if not len(finite):
        return 0, 1
    low, high = int(np.floor(np.log10(finite.min()))), int(np.ceil(np.log10(finite.max())))
    return low, max(high, low + 1)


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 11, fill: str = "black") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"
