"""A running proxy's address → the samples of its metrics, or SetupError in one line where no proxy answers."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from foreseen.errors import SetupError
from foreseen.operate.started import LOOPBACK

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


def fetch(url: str, path: str = "/metrics", key: str | None = None) -> bytes:
    """What a proxy answers to a GET; `key` is an operator's. Raises SetupError in one line where it cannot be reached,
    or asks for another key. On this machine any certificate will do: it is made for another name."""
    if not url.startswith(("http://", "https://")):
        raise SetupError(f"--url {url}: must be http:// or https://")
    try:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(url.rstrip("/") + path, headers=headers)  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=_context(url)) as reply:  # noqa: S310
            content: bytes = reply.read()
            return content
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise SetupError(f"{url}: its metrics need an operator's key; run where its data directory is") from None
        raise SetupError(f"{url}: answered {error.code} to {path}") from None
    except (OSError, urllib.error.URLError, ValueError):
        raise SetupError(f"no proxy answers at {url}; start one, or give --url") from None


def parse(exposition: str) -> Scrape:
    """An exposition's samples."""
    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(time.monotonic(), samples)


def scrape(url: str, key: str | None = None) -> Scrape:
    """A running proxy's metrics. Raises SetupError."""
    return parse(fetch(url, key=key).decode())


def _context(url: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if urlsplit(url).hostname in LOOPBACK:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
