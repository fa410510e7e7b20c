"""A real Prometheus (Debian's package) as a child process of the tests: configured, asked, stopped."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.live import Live
from tests.ports import free_port

BETWEEN_LOOKS_SECONDS = 0.1


@dataclass
class Prometheus:
    url: str
    process: subprocess.Popen[bytes]

    def ask(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as reply:
            return json.loads(reply.read())["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an instant query."""
        result = self.ask("query", query=expression)["result"]
        return [float(sample["value"][1]) for sample in result]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def until(self, there: Callable[[], bool], seconds: float = 60) -> None:
        """Look again and again; Prometheus' own clock decides when, and its death ends the wait."""
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, "it did not come to be in time"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(BETWEEN_LOOKS_SECONDS)
                raise AssertionError("Prometheus has ended")

    def until_scraped(self, times: int) -> None:
        """Wait for so many more scrapes of every target."""
        (before, targets) = self._scrapes()
        self.until(lambda: self._scrapes()[0] >= before + times * targets)

    def _scrapes(self) -> tuple[float, int]:
        counted = self.query('sum_over_time(up{job!="prometheus"}[10m])')
        return sum(counted), len(counted)


@contextlib.contextmanager
def scraping(
    system: Live,
    models: Sequence[str],
    folder: Path,
    *,
    beside: Sequence[Live] = (),
    rules: Sequence[Path] = (),
    interval: str = "500ms",
) -> Iterator[Prometheus]:
    """Prometheus scraping a system's proxy and, through it, its model processes, as docs/operating.md says; and the
    proxies of others beside it."""
    target = [{"targets": [system.url.removeprefix("http://")]}]
    others = [{"targets": [other.url.removeprefix("http://")]} for other in beside]
    jobs: list[dict[str, Any]] = [{"job_name": "proxy", "static_configs": target + others}]
    jobs += [
        {"job_name": f"model-{name}", "metrics_path": f"/metrics/{name}", "static_configs": target} for name in models
    ]
    document = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": jobs,
        "rule_files": [str(path) for path in rules],
    }
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(document))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address={address}", "--log.level=error"]
    process = subprocess.Popen(command)
    made = Prometheus(f"http://{address}", process)
    try:
        made.until(lambda: _answers(made))
        made.until(lambda: len(made.query("up == 1")) == len(jobs) + len(others))
        yield made
    finally:
        process.terminate()
        process.wait(30)


def _answers(prometheus: Prometheus) -> bool:
    try:
        return bool(prometheus.ask("query", query="vector(1)"))
    except (urllib.error.URLError, OSError):
        return False
