"""A Grafana dashboard, and what Prometheus answered to its queries, as SVG: stat and time-series panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

COLUMN, ROW, GAP, MARGIN, HEADER = 50, 33, 6, 12, 40
"""Pixels of a grid cell (Grafana has 24 columns), between panels, around them, and of the title."""
COLORS = ("#3274d9", "#56a64b", "#e0752d", "#8f3bb8", "#d6a200", "#e02f44")
THRESHOLDS = {"blue": "#1f60c4", "green": "#37872d", "orange": "#e0752d", "red": "#c4162a"}
RESULTS = {"hit": "#56a64b", "near": "#56a64b", "miss": "#e0752d", "model": "#e0752d", "partial": "#d6a200"}
"""So that the same result has the same color in every panel."""
DARK, GREY, PALE = "#24292e", "#6e7079", "#e4e6ea"
TICKS = 4
LARGE, SMALLER, LONG_CHARACTERS = 30, 26, 8
"""Sizes of a stat's value: the smaller one of long values."""


@dataclass(frozen=True)
class Line:
    """A time series under the name that the panel's legend gives it; points are (Unix seconds, value), by time."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture, in pixels."""

    x: float
    y: float
    wide: float
    high: float


@dataclass(frozen=True)
class Scale:
    """Where a moment and a value are in a box."""

    box: Box
    start: float
    end: float
    top: float

    def x(self, moment: float) -> float:
        return self.box.x + (moment - self.start) / ((self.end - self.start) or 1) * self.box.wide

    def y(self, value: float) -> float:
        return self.box.y + self.box.high * (1 - min(value / self.top, 1))

    def path(self, line: Line) -> str:
        return "M" + " L".join(f"{self.x(moment):.1f} {self.y(value):.1f}" for moment, value in line.points)

    def area(self, line: Line) -> str:
        first, last = self.x(line.points[0][0]), self.x(line.points[-1][0])
        return f"{self.path(line)} L{last:.1f} {self.y(0):.1f} L{first:.1f} {self.y(0):.1f} Z"


def picture(board: Mapping[str, Any], answers: Mapping[str, Sequence[Line]], below: int) -> str:
    """The panels of a board that end at grid row `below` or above it. `answers`: panel title → its lines."""
    panels = [panel for panel in board["panels"] if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= below]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * COLUMN + 2 * MARGIN, HEADER + rows * ROW + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica, sans-serif">',
        f"<title>{escape(board['title'])}</title>",
        f'<rect width="{width}" height="{height}" fill="#f1f2f4"/>',
        _text(MARGIN + 4, MARGIN + 20, board["title"], 20, bold=True),
    ]
    for panel in panels:
        parts += _panel(panel, [line for line in answers.get(panel["title"], ()) if line.points])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Mapping[str, Any], lines: Sequence[Line]) -> list[str]:
    at = panel["gridPos"]
    box = Box(MARGIN + at["x"] * COLUMN, MARGIN + HEADER + at["y"] * ROW, at["w"] * COLUMN - GAP, at["h"] * ROW - GAP)
    if panel["type"] == "row":
        return [_text(box.x + 4, box.y + 20, panel["title"], 15, bold=True, fill="#52545c")]
    size = f'width="{box.wide}" height="{box.high}"'
    parts = [f'<rect x="{box.x}" y="{box.y}" {size} rx="3" fill="#ffffff" stroke="#dcdee3"/>']
    parts.append(_text(box.x + 10, box.y + 20, panel["title"], 13, bold=True))
    if not lines:
        return [*parts, _text(box.x + box.wide / 2, box.y + box.high / 2, "no data", 16, anchor="middle", fill=GREY)]
    draw = _stat if panel["type"] == "stat" else _graph
    return parts + draw(panel["fieldConfig"]["defaults"], lines, box)


def _stat(field: Mapping[str, Any], lines: Sequence[Line], box: Box) -> list[str]:
    """The last value of each line, in the color of its threshold, above a small graph of the first."""
    values = [line.points[-1][1] for line in lines]
    words = "none" if lines[0].name == "none" else " / ".join(_mapped(field, value) for value in values)
    color = THRESHOLDS[_threshold(field, values[0])]
    size = SMALLER if len(words) > LONG_CHARACTERS else LARGE
    parts = [_text(box.x + box.wide / 2, box.y + 68, words, size, bold=True, anchor="middle", fill=color)]
    moments, seen = zip(*lines[0].points, strict=True)
    if len(moments) > 1 and max(seen) > 0:
        inner = Box(box.x + 2, box.y + 86, box.wide - 4, box.high - 90)
        scale = Scale(inner, moments[0], moments[-1], max(seen))
        parts.append(f'<path d="{scale.area(lines[0])}" fill="{color}" fill-opacity="0.15"/>')
        parts.append(f'<path d="{scale.path(lines[0])}" fill="none" stroke="{color}" stroke-width="1.5"/>')
    return parts


def _graph(field: Mapping[str, Any], lines: Sequence[Line], box: Box) -> list[str]:
    """Lines over time, or areas on each other where the panel stacks them; a legend with the last values."""
    lines = [line for line in lines if any(value for _, value in line.points)] or lines[:1]
    stacked = bool((field.get("custom") or {}).get("stacking"))
    drawn = _stack(lines) if stacked else lines
    moments = [moment for line in lines for moment, _ in line.points]
    top = _round_up(max(value for line in drawn for _, value in line.points) or 1.0)
    scale = Scale(Box(box.x + 66, box.y + 34, box.wide - 86, box.high - 86), min(moments), max(moments), top)
    parts = _axes(field, scale)
    for line, color in reversed(list(zip(drawn, _colors(drawn), strict=True))):
        if stacked:
            parts.append(f'<path d="{scale.area(line)}" fill="#ffffff"/>')
            parts.append(f'<path d="{scale.area(line)}" fill="{color}" fill-opacity="0.6"/>')
        parts.append(f'<path d="{scale.path(line)}" fill="none" stroke="{color}" stroke-width="1.6"/>')
    return parts + _legend(field, lines, box)


def _axes(field: Mapping[str, Any], scale: Scale) -> list[str]:
    parts = []
    box, seconds = scale.box, scale.end - scale.start
    for n in range(TICKS + 1):
        level, moment = scale.y(scale.top * n / TICKS), box.x + box.wide * n / TICKS
        parts.append(f'<path d="M{box.x} {level:.1f}H{box.x + box.wide}" stroke="{PALE}"/>')
        words = amount(scale.top * n / TICKS, field)
        parts.append(_text(box.x - 6, level + 4, words, 11, anchor="end", fill=GREY))
        words = f"{seconds * n / TICKS:.0f} s"
        parts.append(_text(moment, box.y + box.high + 16, words, 11, anchor="middle", fill=GREY))
    return parts


def _legend(field: Mapping[str, Any], lines: Sequence[Line], box: Box) -> list[str]:
    parts = []
    x, y = box.x + 22, box.y + box.high - 12
    for line, color in zip(lines, _colors(lines), strict=True):
        words = f"{line.name} {amount(line.points[-1][1], field)}"
        parts.append(f'<rect x="{x}" y="{y - 7}" width="14" height="4" fill="{color}"/>')
        parts.append(_text(x + 20, y, words, 12))
        x += 38 + 6.3 * len(words)
    return parts


def _colors(lines: Sequence[Line]) -> list[str]:
    return [RESULTS.get(line.name, COLORS[number % len(COLORS)]) for number, line in enumerate(lines)]


def _stack(lines: Sequence[Line]) -> list[Line]:
    """Each line on the sum of those before it; where one has no value at a time, 0."""
    moments = sorted({moment for line in lines for moment, _ in line.points})
    below = dict.fromkeys(moments, 0.0)
    made = []
    for line in lines:
        for moment, value in line.points:
            below[moment] += value
        made.append(Line(line.name, list(below.items())))
    return made


def _mapped(field: Mapping[str, Any], value: float) -> str:
    for mapping in field.get("mappings") or ():
        if f"{value:g}" in mapping["options"]:
            return str(mapping["options"][f"{value:g}"]["text"])
    return amount(value, field)


def _threshold(field: Mapping[str, Any], value: float) -> str:
    """The color of the last step that the value reaches."""
    steps = field["thresholds"]["steps"]
    return str([step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1])


def amount(value: float, field: Mapping[str, Any]) -> str:
    """A value in the panel's unit, as Grafana writes it."""
    unit, decimals = field.get("unit"), field.get("decimals")
    if unit == "percentunit":
        return f"{100 * value:.{decimals or 0}f}%"
    if unit == "s":
        for size, word in ((60.0, "min"), (1.0, "s"), (1e-3, "ms")):
            if value >= size:
                return f"{value / size:.3g} {word}"
        return f"{value * 1e6:.3g} µs" if value else "0 s"
    words = f"{value / 1000:.3g} K" if value >= 10_000 else f"{value:.{decimals}f}" if decimals else f"{value:.4g}"
    return words + {"reqps": " req/s", "rowsps": " rows/s"}.get(unit or "", "")


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 × 10ⁿ, so that a scale of four parts has short numbers."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * 0.999)


def _text(
    x: float, y: float, words: str, size: int, *, bold: bool = False, anchor: str = "start", fill: str = DARK
) -> str:
    weight = "bold" if bold else "normal"
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
