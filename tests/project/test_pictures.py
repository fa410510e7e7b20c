"""The picture of a dashboard in the docs: drawn from the board's own JSON, and no older than it."""

from __future__ import annotations

import json
from html import escape
from xml.etree import ElementTree

from tests.fences import ROOT
from tests.site.dashboard_picture import BOARD, FIRST_SCREEN, PICTURE
from tests.site.draw import Line, amount, picture

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_picture_shows_the_panels_of_the_board() -> None:
    """Every title of the board's first screen, in its order: `make pictures` draws it anew when the board changes."""
    panels = json.loads(BOARD.read_text())["panels"]
    shown = [one["title"] for one in panels if one["gridPos"]["y"] + one["gridPos"]["h"] <= FIRST_SCREEN]
    drawn = texts(PICTURE.read_text())
    assert [one for one in drawn if one in shown] == shown
    assert "no data" not in drawn
    assert f"]({PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text()


def test_values_are_drawn_in_the_units_of_their_panels() -> None:
    """A stat's last value in the color of its threshold, mapped to words; a stack whose top is the sum."""
    steps = {"thresholds": {"steps": [{"color": "red", "value": None}, {"color": "green", "value": 1.0}]}}
    up = {"mappings": [{"options": {"1": {"text": "up"}}}], **steps}
    stacked = {"unit": "reqps", "custom": {"stacking": {"mode": "normal"}}, **steps}
    at = {"x": 0, "y": 0, "w": 12, "h": 8}
    board = {
        "title": "A & B",
        "panels": [
            {"title": "Far", "type": "stat", "gridPos": at, "fieldConfig": {"defaults": up}},
            {"title": "By result", "type": "timeseries", "gridPos": at, "fieldConfig": {"defaults": stacked}},
            {"title": "Empty", "type": "timeseries", "gridPos": at, "fieldConfig": {"defaults": stacked}},
            {"title": "Below", "type": "stat", "gridPos": {**at, "y": 8}, "fieldConfig": {"defaults": up}},
        ],
    }
    two = [Line("hit", [(0.0, 3.0), (1.0, 3.0)]), Line("miss", [(0.0, 1.0), (1.0, 1.0)])]
    drawn = picture(board, {"Far": [Line("up", [(0.0, 0.0), (1.0, 1.0)])], "By result": two}, 8)
    assert escape("A & B") in drawn
    assert {"up", "hit 3 req/s", "miss 1 req/s", "4 req/s", "no data"} <= set(texts(drawn))
    assert "Below" not in texts(drawn)
    assert 'fill="#37872d">up</text>' in drawn


def test_amounts_are_short() -> None:
    """Seconds in the unit that fits, ratios in percent, large counts in thousands."""
    assert [amount(one, {"unit": "s"}) for one in (0.0, 25e-6, 0.0123, 2.5, 150.0)] == [
        "0 s", "25 µs", "12.3 ms", "2.5 s", "2.5 min",
    ]  # fmt: skip
    assert amount(0.954, {"unit": "percentunit", "decimals": 1}) == "95.4%"
    assert amount(20_600.0, {"unit": "short"}) == "20.6 K"
