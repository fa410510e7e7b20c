"""`make pictures`: docs/pictures/overview.svg, the *Overview* dashboard as a running system filled it.

Starts `foreseen up` with minilm and a Prometheus that scrapes it, asks for texts whose popularity follows Zipf's law,
and draws the panels of grafana/dashboards/overview.json from what Prometheus answers to their queries.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from tests.live import Live, started
from tests.models_fixture import built_data
from tests.prometheus import Prometheus, scraping
from tests.questions import ask_minilm
from tests.site.draw import Line, picture

ROOT = Path(__file__).parent.parent.parent
BOARD = ROOT / "grafana" / "dashboards" / "overview.json"
PICTURE = ROOT / "docs" / "pictures" / "overview.svg"
FIRST_SCREEN = 30
"""Grid rows of the board that are drawn: health and traffic."""
SECONDS = 90
CLIENTS = 4
TEXTS = 3_000
PAUSE_SECONDS = 0.02
STEP_SECONDS = 2
VARIABLES = {"$__rate_interval": "10s", "$__range": f"{SECONDS}s", "$price": "2", "$job": ".+", "$model": ".+"}
"""The board's own: all jobs and models, and a compute hour for 2."""


async def load(system: Live, seconds: float) -> None:
    """Clients that ask for texts by Zipf's law, a few a request, with pauses."""
    chosen = random.Random(20261201)
    weights = [1 / rank for rank in range(1, TEXTS + 1)]
    end = time.monotonic() + seconds

    async def one(client: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            texts = [
                f"question {n} about an order"
                for n in chosen.choices(range(TEXTS), weights, k=chosen.choice((1, 1, 1, 4)))
            ]
            async with client.post(f"{system.url}/v2/models/minilm/infer", json=ask_minilm(*texts)) as reply:
                await reply.read()
            await asyncio.sleep(PAUSE_SECONDS * 2 * chosen.random())

    async with aiohttp.ClientSession() as client:
        await asyncio.gather(*(one(client) for _ in range(CLIENTS)))


def lines(prometheus: Prometheus, panel: Mapping[str, Any], start: float, end: float) -> list[Line]:
    """The series of a panel's queries, named as its legend names them."""
    made = []
    for target in panel.get("targets", ()):
        query = (
            target["expr"].replace("$__rate_interval", "10s").replace("$__range", f"{SECONDS}s").replace("$price", "2")
        )
        query = query.replace("$job", ".+").replace("$model", ".+")
        for series in prometheus.ask(
            "query_range", query=query, start=f"{start}", end=f"{end}", step=f"{STEP_SECONDS}"
        )["result"]:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            points = [(float(at), float(value)) for at, value in series["values"] if value not in ("NaN", "+Inf")]
            made.append(Line(name, points))
    return made


def main() -> None:
    """Start, load, scrape, draw."""
    board = json.loads(BOARD.read_text())
    rules = sorted((ROOT / "grafana" / "prometheus" / "rules").glob("*.yml"))
    with (
        tempfile.TemporaryDirectory() as folder,
        started(built_data(), Path(folder) / "data", models=["minilm"]) as system,
        scraping(system, ["minilm"], Path(folder), rules=rules, interval="1s") as prometheus,
    ):
        start = time.time()
        asyncio.run(load(system, SECONDS))
        end = time.time() - STEP_SECONDS
        prometheus.until_scraped(2)
        answers = {panel["title"]: lines(prometheus, panel, start + 10, end) for panel in board["panels"]}
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(board, answers, FIRST_SCREEN))
    print(f"pictures: {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
