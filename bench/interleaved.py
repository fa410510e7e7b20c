"""What every benchmark shares: contestants take turns in rounds, the table shows medians with spread and ratios.

One server core, one load core, both pinned; rounds are interleaved, so that other work on the machine hits all alike.
Ratios are medians of the rounds' ratios. Results go to a table, a JSON file and an SVG plot under `bench/out/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from foreseen.operate.interpreter import optimized

SERVER_CORE, LOAD_CORE = "0", "1"
ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "out"
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass
class Figure:
    """One contestant's turns: requests per second, and latencies in seconds."""

    name: str
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of the server for a request, where they were measured. Neighbours change them less than a rate."""


def need(program: str, package: str) -> str:
    """The path of a Debian program; one line that says how to get it."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        sys.exit(f"bench: {program} is missing; apt-get install {package}")
    return found


@contextlib.contextmanager
def pinned(command: Sequence[str], *, ready: Callable[[], bool], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server on the server's core, up until the block ends."""
    process = subprocess.Popen(["taskset", "-c", SERVER_CORE, *command], **options)
    try:
        while not ready():
            if process.poll() is not None:
                sys.exit(f"bench: {command[0]} ended with {process.returncode}")
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Both cores busy with what gives way at once to everything else (SCHED_IDLE), until the block ends.

    The idle core of a virtual machine is taken away from it and comes back late: on one of 2 cores nginx alone made
    10,000 to 44,000 requests/s in turns of two seconds, and 35,000 to 45,000 with its cores kept busy.
    """
    spin = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinning = [
        subprocess.Popen(["taskset", "-c", core, sys.executable, "-c", spin]) for core in (SERVER_CORE, LOAD_CORE)
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


def wrk(url: str, script: Path, *, connections: int, seconds: float) -> tuple[float, float, float]:
    """One turn of load on the load core: requests/s, p50 and p99 in seconds. Any answer but 2xx ends the bench."""
    command = [
        "taskset",
        "-c",
        LOAD_CORE,
        need("wrk", "wrk"),
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
    ]
    done = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True)
    if "Non-2xx" in done.stdout:
        sys.exit(f"bench: {url} did not answer 2xx:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    quantiles = dict(re.findall(r"(50|99)%\s+([\d.]+[a-z]+)", done.stdout))
    assert rate is not None
    return float(rate[1]), _seconds(quantiles["50"]), _seconds(quantiles["99"])


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


Turn = Callable[[], tuple[float, ...]]
"""Requests/s, p50 and p99 in seconds, and perhaps CPU seconds for a request."""


def metered(turn: Turn, pid: int, seconds: float) -> Turn:
    """A turn that also says what the server and its children used of the processor."""

    def take() -> tuple[float, ...]:
        before = tree_seconds(pid)
        rate, *more = turn()
        return rate, *more, (tree_seconds(pid) - before) / (rate * seconds)

    return take


def tree_seconds(pid: int) -> float:
    """CPU seconds of a process and its children, by the scheduler's account."""
    used = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            used += int((task / "schedstat").read_text().split()[0]) / 1e9
            used += sum(tree_seconds(int(child)) for child in (task / "children").read_text().split())
    return used


def take_turns(turns: Mapping[str, Turn], rounds: int) -> list[Figure]:
    """Every contestant once per round, one after the other."""
    figures = {name: Figure(name) for name in turns}
    with Console(stderr=True).status("") as status:
        for number in range(rounds):
            for name, turn in turns.items():
                status.update(f"round {number + 1} of {rounds}: {name}")
                rate, p50, p99, *cpu = turn()
                figures[name].cpu += cpu
                figures[name].rates.append(rate)
                figures[name].p50.append(p50)
                figures[name].p99.append(p99)
    return list(figures.values())


def ratio(figure: Figure, base: Figure) -> float:
    return statistics.median(one / other for one, other in zip(figure.rates, base.rates, strict=True))


def cpu_ratio(figure: Figure, base: Figure) -> float | None:
    """How often a server answers in the CPU time in which the base answers once."""
    if not figure.cpu or not base.cpu:
        return None
    return statistics.median(other / one for one, other in zip(figure.cpu, base.cpu, strict=True))


def verdict(figures: Sequence[Figure], base: str, goals: Mapping[str, float]) -> bool:
    """Print one line for each figure that has a goal, and whether all are met: times the base, by CPU where that was
    measured."""
    by_name = {one.name: one for one in figures}
    met = True
    for name, goal in goals.items():
        if name in by_name:
            by_cpu = cpu_ratio(by_name[name], by_name[base])
            reached = ratio(by_name[name], by_name[base]) if by_cpu is None else by_cpu
            met &= says(name, reached, goal, f"× {base}{'' if by_cpu is None else ' by CPU'}")
    return met


def says(what: str, reached: float, goal: float, unit: str, *, least: bool = True) -> bool:
    """Print one line about a goal, `least` or most; whether it is met."""
    met = reached >= goal if least else reached <= goal
    bound = "at least" if least else "at most"
    print(f"{'met   ' if met else 'MISSED'} {what}: {reached:.2f} {unit}, goal {bound} {goal:g}", flush=True)
    return met


def end(met: bool, *, report_only: bool) -> None:
    """Exit 1 where a goal is missed, unless only figures are wanted."""
    if not met and not report_only:
        sys.exit(1)


def report(title: str, figures: Sequence[Figure], base: str, **more: Any) -> None:
    """Table on stdout, JSON and plot under bench/out/."""
    first = next(figure for figure in figures if figure.name == base)
    table = Table(title=title, caption=machine())
    for column in ("what answers", "requests/s", "least–most", f"× {base}", "p50 ms", "p99 ms", "CPU µs", "× by CPU"):
        table.add_column(column, justify="left" if column == "what answers" else "right")
    for one in figures:
        table.add_row(
            one.name,
            f"{statistics.median(one.rates):,.0f}",
            f"{min(one.rates):,.0f}–{max(one.rates):,.0f}",
            f"{ratio(one, first):.2f}",
            f"{statistics.median(one.p50) * 1e3:.2f}",
            f"{statistics.median(one.p99) * 1e3:.2f}",
            f"{statistics.median(one.cpu) * 1e6:.1f}" if one.cpu else "",
            "" if cpu_ratio(one, first) is None else f"{cpu_ratio(one, first):.2f}",
        )
    Console(width=140).print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"\W+", "-", title.lower()).strip("-")
    ratios = {one.name: round(ratio(one, first), 4) for one in figures}
    by_cpu = {one.name: cpu_ratio(one, first) for one in figures}
    document = {"title": title, "machine": machine(), "base": base, "ratios": ratios, "ratios_by_cpu": by_cpu, **more}
    (OUT / f"{stem}.json").write_text(json.dumps({**document, "figures": [asdict(f) for f in figures]}, indent=1))
    _plot(OUT / f"{stem}.svg", title, ratios, base)


def machine() -> str:
    """What this was measured on."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    python = f"Python {platform.python_version()}{'' if optimized() else ' built without its profile'}"
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, {python}"


def _plot(path: Path, title: str, ratios: Mapping[str, float], base: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.5 * len(ratios)))
    axes.barh(list(ratios)[::-1], list(ratios.values())[::-1], color="#4477aa")
    axes.axvline(1.0, color="#999999", linewidth=1)
    axes.set_xlabel(f"requests/s relative to {base}")
    axes.set_title(title)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
