"""One model from its manifest to ready (load, self-test, warm-up, batcher), and a request's tensors → its outputs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence

import structlog

from foreseen.errors import ModelUnavailable
from foreseen.inference import gpu, selftest
from foreseen.inference.batching.batcher import Batcher
from foreseen.inference.batching.queued import BatchLimits, BatchOrder, Computed
from foreseen.inference.metrics import ModelMetrics
from foreseen.inference.session import Session, SessionPlan, saturates
from foreseen.inference.session_opening import open_session
from foreseen.modelspec.artifact import Serving, write_serving
from foreseen.modelspec.manifest import Manifest, find
from foreseen.modelspec.row_outputs import empty_outputs, stack_outputs
from foreseen.modelspec.rows import split, stack, tokens, whole_row
from foreseen.modelspec.shapes import RAGGED, Shapes
from foreseen.settings import InferenceSettings
from foreseen.types import Array, Row

_log = structlog.get_logger()


class LoadedModel:
    """The model of this process. `session` and `batcher` raise ModelUnavailable until `open` has finished."""

    def __init__(self, settings: InferenceSettings) -> None:
        """Raises SetupError where there is no such manifest."""
        self.manifest: Manifest = find(settings.model, settings.model_folders)
        self.metrics = ModelMetrics(self.manifest.name, self.manifest.version if settings.triton_metrics else None)
        self.limits = _limits(settings, self.manifest)
        self.runs = 0
        self._settings = settings
        self._independent = False
        self._session: Session | None = None
        self._batcher: Batcher | None = None

    def __repr__(self) -> str:
        return f"<Served {self.manifest.name} {self._batcher or 'not ready'}>"

    @property
    def ready(self) -> bool:
        return self._batcher is not None

    @property
    def session(self) -> Session:
        if self._session is None or self._batcher is None:
            raise ModelUnavailable(f"model '{self.manifest.name}' is loading")
        return self._session

    @property
    def batcher(self) -> Batcher:
        if self._batcher is None:
            raise ModelUnavailable(f"model '{self.manifest.name}' is not ready")
        return self._batcher

    async def open(self) -> None:
        """Load and test the model off the event loop. Raises SetupError in one line that says what to do."""
        session, limits = await asyncio.to_thread(self._load)
        self._session, self.limits = session, limits
        self._batcher = Batcher([session] * _instances(self._settings), self._length_of(session.shapes), limits, self)
        self.metrics.watch_queue(lambda: self._batcher.waiting if self._batcher else 0)
        await asyncio.to_thread(self._leave_word, session)
        _log.info("model ready", model=self.manifest.name, **_facts(limits))

    async def close(self) -> None:
        """Finish accepted requests, then close the session."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await batcher.close()
        if self._session is not None:
            self._session.close()

    async def answer(self, tensors: Mapping[str, Array], order: BatchOrder) -> tuple[dict[str, Array], list[Computed]]:
        """The outputs of a batch given in `[model]` tensors, and the facts of its rows.

        Raises BadInput, the batcher's errors, ModelUnavailable.
        """
        batcher, signature = self.batcher, self.manifest.model
        if not signature.has_rows:
            computed = await batcher.predict([whole_row(tensors, signature)], order)
            return dict(zip((o.name for o in signature.outputs), computed[0].outputs, strict=True)), computed
        rows = split(tensors, signature)
        if not rows:
            return empty_outputs(signature), []
        if self.manifest.rows == "together":
            computed = await batcher.predict([self._whole(rows)], order)
            return dict(zip((o.name for o in signature.outputs), computed[0].outputs, strict=True)), computed
        computed = await batcher.predict(rows, order)
        return stack_outputs([c.outputs for c in computed], signature), computed

    def _length_of(self, shapes: Shapes) -> Callable[[Row], int]:
        """The length of a row for the batcher: its length in a batch, unless that depends on its batch-mates."""
        if self.manifest.rows == "together":
            return lambda _: 1
        if shapes.kind == "fixed":
            return lambda row: shapes.length(tokens(row, self.manifest.model))
        return lambda row: tokens(row, self.manifest.model)

    def ran(self, rows: int, failed: int, padding: int, waits: Sequence[float], seconds: float) -> None:
        """The batcher's Meter."""
        self.runs += 1
        self.metrics.ran(rows, failed, padding, waits, seconds)

    def _whole(self, rows: Sequence[Row]) -> Row:
        """A request as one row, derived inputs included: see `Session.run`."""
        batch = stack(rows, self.manifest.model)
        return Row(tuple(batch[spec.name] for spec in self.manifest.model.inputs))

    def _leave_word(self, session: Session) -> None:
        """Record this model's metadata, for imports while the process is down. A read-only folder is not an error. An
        artifact that was selected by its digest is not recorded, since it is not in force."""
        if self._settings.artifact is not None:
            return
        artifact = session.record.artifact
        said = Serving(session.digest, artifact.digest, artifact.preparation, self.row_independent)
        try:
            write_serving(self._settings.data, self.manifest.name, said)
        except OSError as error:
            _log.info("serving metadata not written", model=self.manifest.name, why=error.strerror)

    @property
    def row_independent(self) -> bool:
        """The cost of starting a run: measured by the build where it ran, and by the self-test here."""
        assert self._session is not None
        return self._session.record.row_independent and self._independent

    def _load(self) -> tuple[Session, BatchLimits]:
        settings, manifest = self._settings, self.manifest
        plan = SessionPlan(settings.provider, settings.threads, settings.fallback, settings.run_seconds)
        session = open_session(manifest, settings.data, plan, settings.artifact)
        try:
            eight_bit = session.record.artifact.precision.startswith("int8")
            if eight_bit and settings.provider == "cpu" and saturates(guarded=True):
                selftest.refuse_saturation(manifest)
            proof = selftest.prove(session, manifest)
            self._independent = proof.independent
            if settings.provider != "cpu":
                fixed = session.shapes.kind == "fixed"
                shapes = ((1, length) for length in session.shapes.lengths or (1,))
                ragged = gpu.buckets(self.limits.max_rows, self.limits.max_tokens)
                selftest.warm(session, manifest, shapes if fixed else ragged)
        except BaseException:
            session.close()
            raise
        return session, _limits(settings, manifest, proof.start_tokens, session.shapes)


def _limits(
    settings: InferenceSettings, manifest: Manifest, start_tokens: int = 0, shapes: Shapes = RAGGED
) -> BatchLimits:
    """The settings', else the manifest's. Rows that depend on each other come as one row already."""
    batching = manifest.batching
    alone = batching.alone or manifest.rows == "together" or shapes.kind == "single"
    wait_ms = batching.wait_ms if settings.wait_ms is None else settings.wait_ms
    return BatchLimits(
        queue_rows=settings.queue_rows,
        max_rows=1 if alone else settings.max_rows or batching.max_rows,
        max_tokens=settings.max_tokens or batching.max_tokens,
        start_tokens=start_tokens,
        wait_seconds=wait_ms / 1000,
        count=shapes.count if shapes.kind == "fixed" else None,
    )


def _instances(settings: InferenceSettings) -> int:
    """0: the number of cores that this process may use, divided by the threads of each run."""
    return settings.instances or max(len(os.sched_getaffinity(0)) // max(settings.threads, 1), 1)


def _facts(limits: BatchLimits) -> dict[str, float]:
    return {"max_rows": limits.max_rows, "max_tokens": limits.max_tokens, "start_tokens": limits.start_tokens}
