"""A running proxy's address → the samples of its metrics, or SetupError in one line where no proxy answers."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from foreseen.errors import SetupError

TIMEOUT_SECONDS = 5.0
Labels = frozenset[tuple[str, str]]


class Scrape(Struct, frozen=True):
    """All samples of one scrape, by name and labels. `at` is monotonic time."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there is none."""
        wanted = set(labels.items())
        return sum(value for has, value in self.samples.get(name, {}).items() if wanted <= has)

    def one(self, name: str, **labels: str) -> float | None:
        """The least of them, None where there is none."""
        wanted = set(labels.items())
        return min((value for has, value in self.samples.get(name, {}).items() if wanted <= has), default=None)

    def values(self, name: str, label: str) -> list[str]:
        """The values that a label has."""
        return sorted({value for has in self.samples.get(name, {}) for key, value in has if key == label})


def fetch(url: str, path: str = "/metrics") -> bytes:
    """A proxy's reply to a GET. Raises SetupError in one line where the proxy cannot be reached."""
    if not url.startswith(("http://", "https://")):
        raise SetupError(f"--url {url}: must be http:// or https://")
    try:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=TIMEOUT_SECONDS) as reply:  # noqa: S310
            content: bytes = reply.read()
            return content
    except (OSError, urllib.error.URLError, ValueError):
        raise SetupError(f"no proxy answers at {url}; start one, or give --url") from None


def parse(exposition: str) -> Scrape:
    """An exposition's samples."""
    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(time.monotonic(), samples)


def scrape(url: str) -> Scrape:
    """A running proxy's metrics. Raises SetupError."""
    return parse(fetch(url).decode())
