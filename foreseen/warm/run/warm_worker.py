"""Processes one chunk of a file: stores entries, writes results, counts rows. Runs in this process or a Ray actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.keys.secret import read_secret
from foreseen.queue.warm_progress import RESULTS
from foreseen.settings import WarmSettings
from foreseen.tenants.tenant import PUBLIC
from foreseen.warm.plan import FAILED, Plan, Warmed
from foreseen.warm.read.files import DIGEST_COLUMN, File
from foreseen.warm.read.reader import Chunk
from foreseen.warm.run.resolve import mapped, outputs_of
from foreseen.warm.run.seen_keys import SeenKeys
from foreseen.warm.run.via_proxy import ViaProxy
from foreseen.warm.run.warmer import ReadyBatch, Warmer
from foreseen.warm.write.results import Store, store_of


class WarmTarget(Protocol):
    """Warms a batch: a Warmer, or a proxy."""

    answered: Callable[[int], None]

    def warm(self, batch: Any, *, wanted: bool = False) -> Warmed: ...
    def close(self) -> None: ...


class Done(Struct):
    """The results of one chunk. `counts` are in the order of `RESULTS`; rejects are ready to be written."""

    file: int
    start: int
    stop: int
    counts: list[int]
    rejects: list[dict[str, Any]]
    equal: int = 0
    """Rows that are equal to one that this worker had before."""


class WarmWorker:
    """Warms chunks and stores their results. Idempotent: a chunk may be processed again."""

    def __init__(self, settings: WarmSettings, plan: Plan, run: str, target: WarmTarget) -> None:
        self.target = target
        self._importing = bool(settings.outputs)
        self._plan = plan
        self._store: Store | None = store_of(settings, plan, run)
        self._seen = SeenKeys()

    def do(self, index: int, file: File, chunk: Chunk, ready: ReadyBatch | None = None) -> Done:
        """Store the entries, then the results. Raises SetupError if the run has to stop."""
        if self._importing:
            check_rows(chunk, file.url, self._plan)
        wanted = self._store is not None
        if isinstance(self.target, Warmer):
            warmed = self.target.warm(chunk.batch, wanted=wanted, ready=ready)
        else:
            warmed = self.target.warm(chunk.batch, wanted=wanted)
        if self._store is not None:
            self._store.write(index, file.url, chunk, warmed)
        counts = np.bincount(warmed.codes, minlength=len(RESULTS)).tolist()
        rejects = [
            {"file": file.url, "row": chunk.line(i), "reason": warmed.reasons.get(i, "was not answered")}
            for i in np.flatnonzero(warmed.codes == FAILED).tolist()
        ]
        return Done(index, chunk.start, chunk.stop, counts, rejects, self._seen.again(warmed.keys))

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        self.target.close()


def target_of(settings: WarmSettings, plan: Plan) -> WarmTarget:
    """The target that executes the plan; a proxy is asked for its metadata first. Raises SetupError."""
    return Warmer(plan) if settings.url is None else proxy_target_of(settings)[0]


def proxy_target_of(settings: WarmSettings) -> tuple[ViaProxy, Plan]:
    """A proxy, and the part of the plan that a run through it needs. Raises SetupError."""
    assert settings.url is not None
    token = None
    if settings.outputs:
        path = settings.admin_token_file or settings.data / "admin-token"
        try:
            token = path.read_text().strip()
        except OSError as error:
            raise SetupError(
                f"an import is a cache write and needs the proxy's admin token: {path}: {error.strerror}; give "
                "--admin-token-file (of the proxy: DATA/admin-token), or run where secret and Redis are, without --url"
            ) from None
    key = None if settings.key_file is None else read_secret(settings.key_file, "tenant's key", least=1).decode()
    pace = settings.rows_per_second, settings.patience_seconds
    through = ViaProxy(settings.url, settings.model, *pace, key, settings.tenant)
    try:
        manifest = through.manifest
        through.token = token
        through.columns = mapped(settings.map, [i.name for i in manifest.seen.inputs], "--map", "input")
        through.outputs = outputs_of(settings, manifest)
    except SetupError:
        through.close()
        raise
    plan = Plan(
        manifest=manifest,
        scope=PUBLIC,  # the proxy's own matter, like the generation
        digest=through.digest,
        mode="import" if settings.outputs else "compute",
        inputs=through.columns,
        outputs=through.outputs,
        rows_per_second=settings.rows_per_second,
        generation=0,
    )
    return through, plan


def check_rows(chunk: Chunk, url: str, plan: Plan) -> None:
    """Compare a digest column with the model's, row by row, before anything of the chunk is written."""
    if DIGEST_COLUMN not in chunk.batch.schema.names:
        return
    strange = set(chunk.batch.column(DIGEST_COLUMN).unique().to_pylist()) - {plan.digest}
    if strange:
        other = str(strange.pop())
        raise SetupError(
            f"{url}: its rows {chunk.start} to {chunk.stop} hold predictions of model {other[:16]}…, in force is "
            f"{plan.digest[:16]}…; take them out, or predict them again"
        )
