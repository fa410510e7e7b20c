"""Which callers a candidate answers: a share of them, always the same ones, the same in every process.

The share is the setting's until an operator changes it (`foreseen canary`). What an operator says stands in a file of
the data directory, which every worker reads again when it changes, also after a restart.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import orjson
import structlog

from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.watched import WatchedFiles

log = structlog.get_logger()

FILE = "canary.json"


def place_of(model: str, caller: str) -> float:
    """A caller's place among all callers of a model, from 0 to 1. A larger share has all callers of a smaller one."""
    digest = hashlib.blake2b(f"foreseen canary v1\0{model}\0{caller}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


class CanaryShare:
    """The share of callers that the candidate at an address answers."""

    def __init__(self, model: str, address: str, share: float, data: Path, metrics: ProxyMetrics) -> None:
        """`share` is the setting's."""
        self.model, self._address, self._given = model, address, share
        self._metrics = metrics
        self._path = data / FILE
        self._watched = WatchedFiles([self._path], "canary")
        self.share = share
        self._take(self._read())

    def chosen(self, caller: str) -> bool:
        """Whether the candidate answers this caller. One of which nothing is known is chosen with all the others."""
        share = self.share
        if share <= 0 or share >= 1:
            return share >= 1
        return bool(caller) and place_of(self.model, caller) < share

    def set(self, share: float) -> None:
        """Of every worker of this data directory; others follow within a second. Raises OSError."""
        document = {"model": self.model, "candidate": self._address, "share": share}
        beside = self._path.with_name(f".{FILE}.{os.getpid()}")
        beside.write_bytes(orjson.dumps(document) + b"\n")
        beside.replace(self._path)
        self._take(share)

    async def follow(self) -> None:
        """Follow the file, for ever."""
        await self._watched.follow(self._look)

    def _look(self) -> None:
        if self._watched.changed():
            self._take(self._read())

    def _take(self, share: float) -> None:
        if share != self.share:
            log.info("canary: share changed", model=self.model, share=share)
        self.share = share
        self._metrics.canary_share.labels(self.model).set(share)

    def _read(self) -> float:
        """What an operator said of this candidate; else the setting."""
        try:
            found = orjson.loads(self._path.read_bytes())
            mine = found["model"] == self.model and found["candidate"] == self._address
            return min(1.0, max(0.0, float(found["share"]))) if mine else self._given
        except FileNotFoundError:
            return self._given
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            log.warning("canary: file not read; the setting is in force", error=type(error).__name__)
            return self._given
