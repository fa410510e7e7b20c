"""One model as the proxy serves it: manifest, preparation, process and the key space in force.

A watcher reads the process's metadata again and again: a new digest is a new space. Preparation (tokenizer,
normalization) runs in the proxy, and the digest comes from the process. So both compare the digest of the preparation:
a process that was built with another one gets no requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from foreseen.errors import ModelUnavailable, SetupError
from foreseen.keys.key import Framer, reply_id, reply_id_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.artifact import preparation_digest, read_file, read_record
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.model import ModelProcess
from foreseen.proxy.backend.model_metadata import ModelFacts
from foreseen.proxy.backend.turns.absent_rows import AbsentRows
from foreseen.proxy.cache.freshness import Policy
from foreseen.settings import ProxySettings
from foreseen.types import ALL_STEPS, Prediction, RequestOptions, Row, Scope, Space, Steps

log = structlog.get_logger()

WATCH_SECONDS = 1.0
WATCH_SECONDS_AT_START = 0.1
FORMER_DIGESTS = 8
"""How many digests back a miss can be explained by a new one."""


@dataclass(slots=True)
class WorkerStats:
    """Triton's statistics extension, of this worker: counts and seconds."""

    bypass: int = 0
    bypass_seconds: float = 0.0
    fail: int = 0
    fail_seconds: float = 0.0
    cache_hit: int = 0
    cache_hit_seconds: float = 0.0
    cache_miss: int = 0
    cache_miss_seconds: float = 0.0
    rows: int = 0
    computed_rows: int = 0
    computed_requests: int = 0
    last_seconds: float = 0.0
    """When a request was answered last, in Unix seconds."""

    @property
    def success(self) -> int:
        return self.cache_hit + self.cache_miss + self.bypass

    @property
    def success_seconds(self) -> float:
        return self.cache_hit_seconds + self.cache_miss_seconds + self.bypass_seconds


class ServedModel:
    """One model of this proxy."""

    def __init__(self, manifest: Manifest, process: ModelProcess, data: Path, freshness: Policy, id_key: bytes) -> None:
        """`id_key` is what ids of replies are made with."""
        self.manifest = manifest
        self.process = process
        self.framer = Framer(manifest.model)
        self.freshness = freshness
        self.stats = WorkerStats()
        self.facts: ModelFacts | None = None
        self.been_ready = False
        self.reachable = False
        self.why = "its process has not answered yet"
        self.former: deque[str] = deque(maxlen=FORMER_DIGESTS)
        self.absent = AbsentRows()
        self._data = data
        self._id_key = id_key
        self._preparer: Preparer | None = None
        self._preparation: str | None = None

    @property
    def ready(self) -> bool:
        """Whether a miss would be answered now. Hits need only that the model has ever said its digest."""
        return self.facts is not None and self.reachable

    @property
    def steps(self) -> Steps:
        """What may be done with this model's answers; a model that may not be cached goes straight through."""
        independent = self.facts is None or self.facts.row_independent or self.manifest.rows == "together"
        return ALL_STEPS if self.manifest.cacheable and independent else frozenset(("model",))

    def takes(self, row: Row) -> bool:
        """Whether requests are cut into such rows now: by the row, or not at all. A probe that ends changes that."""
        whole = [len(spec.shape) for spec in self.manifest.model.of(row.given).keyed]
        rows = 0 if self.manifest.rows == "together" else 1
        return [tensor.ndim + rows for tensor in row.tensors] == whole

    @property
    def ours(self) -> bool:
        """Whether its process is our own; see `ModelProcess`."""
        return self.process.ours

    @property
    def bypass_reason(self) -> str:
        return "rows-not-independent" if self.manifest.cacheable else "not-cacheable"

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        """Ask the process; see `ModelProcess.predict`."""
        try:
            return await self.process.predict(rows, parameters, options)
        except ModelUnavailable:
            self.absent.add(len(rows))
            raise

    def keyed(self, manifest: Manifest) -> ServedModel:
        """The same model with its rows keyed otherwise. It is ready after its first `refresh`."""
        other = ServedModel(manifest, self.process, self._data, self.freshness, self._id_key)
        other.stats, other.former = self.stats, self.former
        return other

    def reply_id(self, fields: Sequence[bytes]) -> str:
        """The id of a reply to these inputs and parameters: the same on a hit as on the miss."""
        return reply_id(self._id_key, (self.manifest.name.encode(), *fields))

    def space(self, scope: Scope) -> Space:
        """A scope's key space in force. Raises ModelUnavailable until the process has said its digest."""
        if self.facts is None:
            raise self._unavailable()
        return Space(scope, self.manifest.name, self.facts.digest)

    @property
    def preparation(self) -> str:
        """The digest of what rows are prepared by; empty while it is not known."""
        return self._preparation or ""

    def preparer(self) -> Preparer:
        """Raises ModelUnavailable until the preparation is known to be that of the process."""
        if self._preparer is None:
            raise self._unavailable()
        return self._preparer

    def _unavailable(self) -> ModelUnavailable:
        """The error of a request whose rows cannot be read yet: it counts as one."""
        self.absent.add(1)
        return ModelUnavailable(self.not_ready)

    @property
    def not_ready(self) -> str:
        """Why the model is not ready, as a caller reads it."""
        said = f"model {self.manifest.name!r} is not ready: "
        return said + self.why.removeprefix(said)  # its process may have said it already

    async def refresh(self) -> None:
        """Read the process's metadata; a digest that differs is in force from now on.

        A process that cannot be reached keeps the facts that it had: its answers stay valid, hits keep flowing.
        """
        try:
            facts = await self.process.facts()
        except ModelUnavailable as error:
            if not self.ours and str(error) != self.why:  # our own processes are started, and logged, here
                log.warning("model not ready", model=self.manifest.name, why=str(error))
            self.reachable, self.why = False, str(error)
            return
        except SetupError as error:
            self._not_ready(str(error))
            return
        if self._preparer is None or facts.preparation not in (None, self._preparation):
            problem = self._load_preparation(facts)
            if problem is not None:
                self._not_ready(problem)
                return
        if self.facts is not None and facts.digest != self.facts.digest:
            self.former.append(self.facts.digest)
            self.process.quarantine.clear()
            self.process.renew()
        if self.facts is None or facts.digest != self.facts.digest:
            log.info("model ready", model=self.manifest.name, digest=facts.digest[:12], precision=facts.precision)
        self.facts, self.been_ready, self.reachable, self.why = facts, True, True, ""
        self.absent.clear()

    def _not_ready(self, why: str) -> None:
        if why != self.why:
            log.error("model not ready", model=self.manifest.name, why=why)
        self.why, self.facts = why, None

    async def watch(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(WATCH_SECONDS if self.ready else WATCH_SECONDS_AT_START)

    def _load_preparation(self, facts: ModelFacts) -> str | None:
        """Read the assets in force; what is wrong, or None."""
        try:
            record = read_record(self._data, self.manifest.name) if self._needs_assets() else None
            files = record.artifact.assets if record else ()
            assets = {file.name: read_file(self._data, record.artifact, file) for file in files} if record else {}
            preparation = preparation_digest(self.manifest, files)
            if facts.preparation not in (None, preparation):
                return "its process was built with another preparation (model.toml or tokenizer); rebuild or restart it"
            self._preparer = Preparer(self.manifest, assets)
        except SetupError as error:
            return str(error)
        self._preparation = preparation
        return None

    def _needs_assets(self) -> bool:
        return any(spec.tokenizer for spec in self.manifest.seen.inputs)


def id_key_of(settings: ProxySettings) -> bytes:
    """What ids of replies are made with. Raises SetupError without a root secret."""
    return reply_id_key(read_secret(settings.secret_file or settings.data / "secret"))
