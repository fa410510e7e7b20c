"""What metrics, logs and traces cost a hit, and what a scrape does to it: `make bench-overhead`.

The same proxy, differently told: counting nothing and logging nothing, counting, counting and logging a hundredth of
the hits (the default), logging every hit, counting into the files that several workers share, being scraped ten times
a second, exporting traces of which none is sampled, and auditing hits up to the default cap. Each for the shortest and
the longest way of a hit: the same bytes again, and a body never seen whose rows are known; and for requests with a
trace context that is not sampled. All on one core, the load on the other, in interleaved rounds. Beside the rates the
CPU time that the proxy took for a request, which other work on the machine moves far less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.hit_servers import ask
from bench.interleaved import ROOT, awake, end, pinned, report, says, take_turns, wrk
from bench.wrk_scripts import script
from tests.live import sum_of
from tests.models_fixture import built_data
from tests.ports import free_port
from tests.questions import ask_fingerprint, numbers

MODEL = "/v2/models/fingerprint/infer"
OFF = "nothing counted, nothing logged"
AUDITED = "the default, hits audited"
MOST_PERCENT = 1.0
"""CPU of a hit under an audit at the default cap, or with traces of which none is sampled, more than without."""
KINDS: dict[str, tuple[str, ...]] = {
    OFF: ("--no-metrics", "--access-log-hits=0"),
    "counted": ("--access-log-hits=0",),
    "counted, 1 % of hits logged": (),
    "counted, every hit logged": ("--access-log-hits=1",),
    AUDITED: ("--audit=0.1%",),
}
SEVERAL = "counted as of several workers"
TRACED, DEFAULT = "the default, traces on, none sampled", "counted, 1 % of hits logged"
TWIN = "the default, another process"
"""How much two processes that do the same differ."""
COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
"""Nothing is sent there, as nothing is sampled."""
UNSAMPLED = 'wrk.headers["traceparent"] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"'
ABOUT = {"audit": (OFF, DEFAULT, AUDITED), "traces": (OFF, DEFAULT, TRACED, TWIN)}
JUDGED = (TRACED, AUDITED)
SCRAPED = "the default, scraped every 100 ms"
SCRAPE_SECONDS = 0.1


@contextlib.contextmanager
def serving(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """A command of ours on the server's core, its log thrown away; its URL and process once it is ready."""
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1) as reply:
            return bool(reply.status == 200)
        return False

    whole = [sys.executable, "-m", "foreseen.cli", *command, f"--port={port}", "--model=fingerprint"]
    nowhere = subprocess.DEVNULL
    everywhere = {**os.environ, **(environment or {})}
    with pinned(whole, ready=ready, stdout=nowhere, stderr=nowhere, cwd=ROOT, env=everywhere) as process:
        yield url, process.pid


def fetched(url: str) -> str:
    """The metrics of a proxy."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


FRESH_TIMEOUT = """local n = 10000000 + os.time() % 50000 * 100000
request = function() n = n + 1
  return wrk.format(nil, nil, nil, '{"parameters":{"timeout":' .. n .. '},' .. wrk.body:sub(2)) end"""
"""A body that is known by its template alone: `timeout` is no part of a key, but stands in the body."""


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processor, over all its threads."""
    return sum(int(one.read_text().split()[0]) for one in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@contextlib.contextmanager
def scraped(url: str) -> Iterator[None]:
    """A Prometheus in a hurry."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(SCRAPE_SECONDS):
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
                reply.read()

    scraper = threading.Thread(target=again)
    scraper.start()
    try:
        yield
    finally:
        over.set()
        scraper.join()


def started(running: contextlib.ExitStack, folder: Path, only: str | None) -> dict[str, tuple[str, int]]:
    """A proxy of each kind, or of those that the one question needs: its URL and process."""
    data, shared = folder / "d", folder / "metrics"
    data.mkdir()
    shared.mkdir()
    (data / "models").symlink_to(built_data() / "models")
    running.enter_context(serving(["up", f"--data={data}"], free_port()))  # Valkey and the model for all
    proxy = ["proxy", f"--data={data}", "--state=none"]
    plain: dict[str, str] = {}
    kinds = {kind: (flags, plain) for kind, flags in KINDS.items()}
    kinds[SEVERAL] = (), {"PROMETHEUS_MULTIPROC_DIR": str(shared)}
    kinds[TRACED], kinds[TWIN] = ((), COLLECTOR), ((), plain)
    return {
        kind: running.enter_context(serving([*proxy, *flags], free_port(), environment))
        for kind, (flags, environment) in kinds.items()
        if only is None or kind in ABOUT[only]
    }


class CpuOfRequests:
    """Turns that also note what each server used of the processor for a request."""

    def __init__(self, connections: int, seconds: int) -> None:
        self._connections, self._seconds = connections, seconds
        self.micros: dict[str, list[float]] = {}

    def turn(
        self, kind: str, where: tuple[str, int], path: Path, *, scrape: bool = False
    ) -> Callable[[], tuple[float, float, float]]:
        url, pid = where

        def take() -> tuple[float, float, float]:
            with scraped(url) if scrape else contextlib.nullcontext():
                before = cpu_seconds(pid)
                told = wrk(url + MODEL, path, connections=self._connections, seconds=self._seconds)
                used = cpu_seconds(pid) - before
            self.micros.setdefault(kind, []).append(used / (told[0] * self._seconds) * 1e6)
            return told

        return take

    def more(self, kind: str) -> float:
        """Per cent of CPU that a request takes in the median round, more than by default."""
        pairs = zip(self.micros[kind], self.micros[DEFAULT], strict=True)
        return 100 * (statistics.median(one / default for one, default in pairs) - 1)


def main() -> None:
    """Run the rounds and print a table for each road."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", choices=ABOUT, help="Only what an audit, or what traces cost.")
    parser.add_argument("--report-only", action="store_true", help="Exit with 0 whatever was found.")
    settings = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(prefix="fsn") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        urls = started(running, folder, settings.only)
        body = json.dumps(ask_fingerprint(*(numbers(n) for n in range(6)))).encode()  # 1 KB
        for url, _ in urls.values():
            for _ in range(3):
                ask(url + MODEL, body)
        for road, path in {
            "the same bytes again": script(folder, "same", body),
            "known rows under a timeout never seen": script(folder, "fresh", body, FRESH_TIMEOUT),
            "the same body, an unsampled trace": script(folder, "unsampled", body, UNSAMPLED),
        }.items():
            used = CpuOfRequests(settings.connections, settings.seconds)
            turns = {kind: used.turn(kind, where, path) for kind, where in urls.items()}
            if settings.only is None:
                turns[SCRAPED] = used.turn(SCRAPED, urls[DEFAULT], path, scrape=True)
            report(f"Metrics and logs, {road}", take_turns(turns, settings.rounds), OFF, cpu_micros=used.micros)
            for kind, micros in used.micros.items():
                more = statistics.median(one - none for one, none in zip(micros, used.micros[OFF], strict=True))
                line = f"{kind:<38}{statistics.median(micros):8.1f} µs of CPU a request{more:+8.1f}"
                print(f"{line}; {used.more(kind):+.1f} % of the default's", flush=True)
            for kind in filter(urls.__contains__, JUDGED):
                met &= says(
                    f"{kind}, {road}", used.more(kind), MOST_PERCENT, "% more CPU than the default", least=False
                )
        if AUDITED in urls:
            audited = sum_of(fetched(urls[AUDITED][0]), "foreseen_audit_rows_total", {"outcome": "equal"})
            print(f"{audited:,.0f} hits were audited, equal", flush=True)
    end(met, report_only=settings.report_only)


if __name__ == "__main__":
    with awake():
        main()
