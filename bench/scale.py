"""What a hit costs and an entry takes as everything grows: `make bench-scale`.

entries      one-row hits with 10³ to 10⁵ entries in near, each asked in an order never seen
batches      rows of one request, 1 to 1,024 known ones in an order never seen: cost of a request and of a row
tensors      one row of 1 KB to 1 MB, binary
connections  1 to 1,024 of them, each asking when it is answered
memory       what an entry of 384 floats takes in near (the process's own memory) and in Redis (what it says)
workers      hits a second of one and of two proxies on this machine's cores, the load beside them
policy       hit ratios on a trace of keys: near, LRU, the offline optimum, and near where requests meet two workers

Cost is the proxy's CPU time per request, from the scheduler's own account: it does not depend on what else runs. The
proxy has a core, the load the other.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import policy, shapes
from bench.interleaved import LOAD_CORE, OUT, ROOT, SERVER_CORE, awake, machine, wrk
from bench.load import at_once, in_turn, post
from bench.pinned_system import Parts, is_ready, parts, until
from bench.wrk_scripts import script
from foreseen.protocol.wire_render import render_request
from tests.live import sum_of
from tests.ports import free_port

ENTRIES = (1_000, 10_000, 100_000)
BATCHES = (1, 4, 16, 64, 256, 1024)
TENSORS = (256, 2_048, 16_384, 131_072, 262_144)
"""Floats of a row: 1 KB to 1 MB."""
CONNECTIONS = (1, 16, 64, 256, 1024)
MEMORY_ENTRIES = 50_000
STEP = 1024
SETTINGS = (
    f"--models={shapes.FOLDER}",
    "--near-bytes=1073741824",
    "--far-pending-bytes=1073741824",
    "--far-budget-ms=5000",
)
SWEEPS = ("entries", "batches", "tensors", "connections")


@dataclass
class Point:
    """One place of a sweep, in rounds: microseconds of the proxy's CPU per request, requests/s, seconds at p99."""

    at: int
    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


class Sweeps:
    """The proxy, and rows of `embed` that it knows."""

    def __init__(self, system: Parts, url: str, rounds: int, requests: int) -> None:
        self.system, self.url = system, url
        self.rounds, self.requests = rounds, requests
        self.dice = np.random.default_rng(5)
        self.rows = self.dice.integers(0, 2**40, (ENTRIES[-1], 16))
        self.known = 0

    def learn(self, count: int) -> None:
        """Have so many rows answered, hence kept."""
        at_once(self.url, [embed(self.rows[at : min(at + STEP, count)]) for at in range(self.known, count, STEP)], 2)
        self.known = max(self.known, count)

    def entries(self) -> list[Point]:
        """Each stage is measured when so many are there: they cannot take turns."""
        points = []
        for count in ENTRIES:
            self.learn(count)
            points.append(Point(count))
            for _ in range(self.rounds):
                self.turn(points[-1], [embed(self.some(1)) for _ in range(self.requests)], 16)
        return points

    def batches(self) -> list[Point]:
        return self.take_turns(BATCHES, lambda rows: [embed(self.some(rows)) for _ in range(self.count(rows))], 4)

    def tensors(self) -> list[Point]:
        """Some rows of each size, known beforehand; each request has a fresh id, so its bytes were never seen."""
        pools = {size: [self.dice.random((1, size), np.float32) for _ in range(4)] for size in TENSORS}
        for pool in pools.values():
            at_once(self.url, [vector(row, "first") for row in pool], 1)
        ids = itertools.count()

        def asked(size: int) -> list[bytes]:
            return [vector(pools[size][n % 4], str(next(ids))) for n in range(self.count(size // 64))]

        return self.take_turns(TENSORS, asked, 4)

    def connections(self) -> list[Point]:
        return self.take_turns(CONNECTIONS, lambda _: [embed(self.some(1)) for _ in range(self.requests)], None)

    def some(self, count: int) -> np.ndarray[Any, Any]:
        """Known rows in an order never seen."""
        return self.rows[self.dice.integers(0, self.known, count)]

    def count(self, weight: int) -> int:
        return max(20, self.requests // max(1, weight // 8))

    def take_turns(
        self, places: Sequence[int], asked: Callable[[int], list[bytes]], clients: int | None
    ) -> list[Point]:
        points = [Point(at) for at in places]
        for _ in range(self.rounds):
            for point in points:
                self.turn(point, asked(point.at), point.at if clients is None else clients)
        return points

    def turn(self, point: Point, requests: Sequence[bytes], clients: int) -> None:
        before = self.system.seconds("proxy")
        took = in_turn(self.url, requests) if clients == 1 else at_once(self.url, requests, clients)
        point.cpu.append((self.system.seconds("proxy") - before) / len(requests) * 1e6)
        point.rate.append(took.rate)
        point.p99.append(took.quantile(0.99))


def embed(rows: np.ndarray[Any, Any]) -> bytes:
    return post("/v2/models/embed/infer", *render_request([("x", "INT64", rows)], {}))


def vector(row: np.ndarray[Any, Any], request_id: str) -> bytes:
    return post("/v2/models/vector/infer", *render_request([("x", "FP32", row)], {}, request_id))


def memory(system: Parts, rounds: int) -> dict[str, float]:
    """Bytes that an entry of 384 floats takes: proxies of their own, so that nothing else is in their memory."""
    dice = np.random.default_rng(9)
    near, far = [], []
    count = MEMORY_ENTRIES // STEP * STEP
    for number in range(rounds):
        name = f"proxy-{number}"
        url = system.proxy(
            SERVER_CORE,
            ["embed"],
            *SETTINGS,
            "--reply-cache-bytes=0",
            name=name,
        )
        at_once(url, [embed(dice.integers(0, 2**40, (STEP, 16))) for _ in range(4)], 2)
        settled(url, 4 * STEP)
        before, stored = system.memory(name), told(url)
        at_once(url, [embed(dice.integers(0, 2**40, (STEP, 16))) for _ in range(count // STEP)], 2)
        settled(url, stored[1] + count)
        then = told(url)
        near.append((system.memory(name) - before) / count)
        far.append((then[0] - stored[0]) / (then[1] - stored[1]))
        system.stop(name)
    return {"near_bytes": statistics.median(near), "redis_bytes": statistics.median(far), "data_bytes": 384.0 * 4}


def settled(url: str, entries: float) -> None:
    """Wait until Redis has so many."""
    until(lambda: told(url)[1] >= entries, f"{entries:,.0f} entries in Redis")


def told(url: str) -> tuple[float, float]:
    """Redis' memory, and its entries."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return sum_of(text, "foreseen_far_memory_bytes", {}), sum_of(text, "foreseen_far_entries", {})


def workers(folder: Path, seconds: int, rounds: int) -> dict[str, list[float]]:
    """Hits a second with one and with two workers, which nobody pins: with two, they and the load share two cores."""
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 128], "datatype": "INT64", "data": list(range(128))}]})
    asked = script(folder, "workers", body.encode())
    rates: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(rounds):
        for count, listed in rates.items():
            with up(folder / f"up-{count}-{len(listed)}", count) as url:
                wrk(url + "/v2/models/wide/infer", asked, connections=16, seconds=1)
                listed.append(wrk(url + "/v2/models/wide/infer", asked, connections=16, seconds=seconds)[0])
    return rates


@contextlib.contextmanager
def up(data: Path, count: str) -> Iterator[str]:
    """A whole system with so many workers; its URL."""
    (data / "models").mkdir(parents=True)
    (data / "models" / "wide").symlink_to(shapes.made()[0] / "models" / "wide")
    port = free_port()
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", "--log-level=error"]
    command += [f"--models={shapes.FOLDER}", "--model=wide", f"--workers={count}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_ready(f"{url}/v2/health/ready"), f"{count} workers")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Run the sweeps, print the tables, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2_000, help="of one turn; fewer where they are large")
    parser.add_argument("--keys", type=int, default=400_000, help="length of the trace of keys, about")
    parser.add_argument("--skip", nargs="*", default=[], choices=("sweeps", "memory", "workers", "policy"))
    settings = parser.parse_args()
    affinity = os.sched_getaffinity(0)
    found: dict[str, Any] = {"machine": machine()}
    if {"sweeps", "memory"} - set(settings.skip):
        os.sched_setaffinity(0, {int(LOAD_CORE)})
        with parts(shapes.made()[0]) as system:
            system.far(SERVER_CORE, 4 << 30)
            models = f"--models={shapes.FOLDER}"
            for name in ("embed", "vector"):
                system.model(name, LOAD_CORE, models)
            if "sweeps" not in settings.skip:
                found |= sweep(system, settings.rounds, settings.requests)
            if "memory" not in settings.skip:
                found["memory"] = memory(system, settings.rounds)
    os.sched_setaffinity(0, affinity)
    if "workers" not in settings.skip:
        with tempfile.TemporaryDirectory(prefix="fsn") as folder:
            found["workers"] = workers(Path(folder), 2, settings.rounds)
    if "policy" not in settings.skip:
        keys, origin = policy.key_trace(settings.keys)
        found["policy"] = {"trace": origin, "requests": len(keys), "distinct": max(keys) + 1}
        found["policy"]["ratios"] = [one._asdict() for one in policy.compare(keys)]
    show(found)


def sweep(system: Parts, rounds: int, requests: int) -> dict[str, list[dict[str, Any]]]:
    """All sweeps on one proxy whose near holds everything."""
    url = system.proxy(SERVER_CORE, ["embed", "vector"], *SETTINGS)
    sweeps = Sweeps(system, url, rounds, requests)
    found = {}
    for name in SWEEPS:
        print(f"sweep: {name}", file=sys.stderr)
        found[name] = [asdict(point) for point in getattr(sweeps, name)()]
    system.stop("proxy")
    return found


def show(found: Mapping[str, Any]) -> None:
    """Tables on stdout, JSON and a plot under bench/out/."""
    console = Console(width=120)
    for name in SWEEPS:
        if name in found:
            table = Table("at", "CPU µs a request", "least–most", "requests/s", "p99 ms", title=f"Hits: {name}")
            for point in found[name]:
                cpu = point["cpu"]
                figures = [
                    statistics.median(cpu),
                    statistics.median(point["rate"]),
                    statistics.median(point["p99"]) * 1e3,
                ]
                spread = f"{min(cpu):,.0f}–{max(cpu):,.0f}"
                table.add_row(
                    f"{point['at']:,}", f"{figures[0]:,.0f}", spread, f"{figures[1]:,.0f}", f"{figures[2]:.2f}"
                )
            console.print(table)
    if "memory" in found:
        of = found["memory"]
        console.print(
            f"memory of an entry of 384 floats: near {of['near_bytes']:,.0f} B, Redis {of['redis_bytes']:,.0f} B"
        )
    if "workers" in found:
        rates = {count: statistics.median(listed) for count, listed in found["workers"].items()}
        console.print(
            f"hits/s of one worker {rates['1']:,.0f}, of two {rates['2']:,.0f}, the load on one of their cores"
        )
    if "policy" in found:
        of = found["policy"]
        table = Table("entries that fit", "near", "LRU", "optimum", "two workers", title=f"Hit ratios: {of['trace']}")
        for one in of["ratios"]:
            ratios = [f"{one[who]:.3f}" for who in ("near", "lru", "optimum", "two")]
            table.add_row(f"{one['entries']:,} ({one['share']:.1%})", *ratios)
        console.print(table)
    console.print(found["machine"])
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "scale.json").write_text(json.dumps(found, indent=1))
    _plot(found)


def _plot(found: Mapping[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, all_axes = plt.subplots(1, len(SWEEPS) + 1, figsize=(18, 3.6))
    for axes, name in zip(all_axes, SWEEPS, strict=False):
        points = found.get(name, [])
        axes.plot([p["at"] for p in points], [statistics.median(p["cpu"]) for p in points], marker="o")
        axes.set(xscale="log", xlabel=name, ylabel="CPU µs a request")
        axes.set_ylim(bottom=0)
    for who in ("near", "lru", "optimum", "two"):
        listed = found.get("policy", {}).get("ratios", [])
        all_axes[-1].plot([one["share"] for one in listed], [one[who] for one in listed], marker="o", label=who)
    all_axes[-1].set(xscale="log", xlabel="share of the keys that fits", ylabel="hit ratio")
    all_axes[-1].legend()
    figure.tight_layout()
    figure.savefig(OUT / "scale.svg")
    plt.close(figure)


if __name__ == "__main__":
    with awake():
        main()
