"""Shadow traffic: a share of the live rows goes to a candidate as well, and the two answers are compared.

draw      rows that the model in force computed (hits too, where asked), uniformly
ask       the candidate, in its background lane; no live request waits for it, and no answer of it is sent or kept
compare   bits, labels and values beyond the tolerance (`foreseen/compare`)
end       when the interval of the changed share is narrow, when the budget is spent, or when a model has changed
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Protocol

import structlog
from msgspec import Struct, structs

from foreseen.compare.comparison import CONFIDENCE, TOLERANCE, Comparison
from foreseen.compare.intervals import interval
from foreseen.errors import ModelUnavailable
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.sampling.draws import Draws, RowBudget
from foreseen.proxy.predict.sampling.row_sampler import Drawn, RowSampler
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.metrics import SHADOW_OUTCOMES, ProxyMetrics
from foreseen.types import Prediction, RequestOptions

log = structlog.get_logger()

COMPUTE_SECONDS = 30.0
AT_ONCE = 4
"""Rows that the candidate is asked for side by side; another server may be far away."""
LOOK_ROWS = 50
"""The interval is looked at after so many rows."""
MISSES: frozenset[str] = frozenset(("model", "bypass"))
HITS: frozenset[str] = frozenset(("near", "far"))


class CandidateModel(Protocol):
    """A model that live rows are sent to as well, of which served model."""

    model: str

    @property
    def served(self) -> ServedModel | None:
        """It, once it has been found."""
        ...


class ShadowEnd(Struct, frozen=True):
    """When enough rows were compared."""

    rows: int = 100_000
    width: float = 0.005
    """Of the interval of the changed share."""


class Shadow(RowSampler):
    """Sends rows of one model to a candidate, in one proxy process."""

    joined = False

    def __init__(
        self, candidate: CandidateModel, metrics: ProxyMetrics, draws: Draws, budget: RowBudget,
        limits: ShadowEnd, *, hits: bool = False, tolerance: float = TOLERANCE,
    ) -> None:  # fmt: skip
        """`hits`: rows that a cache answered are drawn, too."""
        super().__init__("shadow", metrics.shadowed, draws, budget)
        self.model = candidate.model
        self.sources = MISSES | HITS if hits else MISSES
        self.hits = hits
        self.candidate, self._metrics, self._limits, self._tolerance = candidate, metrics, limits, tolerance
        self._comparison: Comparison | None = None
        self._rows = self._changed = 0
        self._digests: tuple[str, str] | None = None
        self.ended: str | None = None
        """Why no more rows are sent."""

    async def shadow(self, server: Server) -> None:
        """Send what is drawn to the candidate, until it has ended; then do nothing."""
        self.expect(self.model)
        self._metrics.shadow_running.labels(self.model).set(1)
        await self.follow(server, at_once=AT_ONCE)

    def expect(self, model: str) -> None:
        for outcome in SHADOW_OUTCOMES:
            self._metrics.shadowed.labels(model, outcome)

    def granted(self, model: str, rows: Sequence[int]) -> Sequence[int]:
        return super().granted(model, rows) if model == self.model and self.ended is None else ()

    async def outcome(self, drawn: Drawn) -> str:
        """Ask the candidate for one row and compare. Raises what the candidate raises."""
        candidate = self.candidate.served
        if candidate is None or not candidate.ready:
            raise ModelUnavailable("the candidate is not ready")
        if self.ended is not None:
            return "dropped"
        options = RequestOptions(asyncio.get_running_loop().time() + COMPUTE_SECONDS, "background")
        (fresh,) = await candidate.predict((drawn.row,), drawn.parameters, options)
        if not self._same_models(drawn.space.digest, fresh.digest):
            return "not-comparable"
        return self._compared(drawn, fresh)

    def _same_models(self, live: str, candidate: str) -> bool:
        """Whether the answers are of the two models that the comparison began with; it ends otherwise."""
        if self._digests is None:
            self._digests = live, candidate
        if self._digests != (live, candidate):
            self._stop("model-changed")
            return False
        return True

    def _compared(self, drawn: Drawn, fresh: Prediction) -> str:
        old, new, comparison = tensors_of(drawn.answered), tensors_of(fresh), self._comparison
        if comparison is None:
            labelled = [output.name for output in drawn.served.manifest.seen.outputs if output.labels]
            comparison = self._comparison = Comparison(labelled, self._tolerance)
        found = comparison.add(drawn.key, old, new, old.seconds, new.seconds)
        for side, seconds in (("live", old.seconds), ("candidate", new.seconds)):
            self._metrics.shadow_seconds.labels(self.model, side).inc(seconds)
        if found.cosine is not None:
            self._metrics.shadow_distance.of(self.model).add(max(0.0, 1 - found.cosine))
        changed = comparison.changed(found)
        self._changed += changed
        self._rows = comparison.rows
        self._look()
        return "changed" if changed else "close" if found.bits else "equal"

    def _look(self) -> None:
        """Whether that is enough."""
        rows = self._rows
        if rows >= self._limits.rows:
            self._stop("budget")
        elif rows % LOOK_ROWS == 0:
            low, high = interval(self._changed, rows, CONFIDENCE)
            if high - low <= self._limits.width:
                self._stop("interval")

    def _stop(self, why: str) -> None:
        """Draw no more rows. What waits is dropped."""
        if self.ended is not None:
            return
        self.ended = why
        self.draws.left = sys.maxsize
        self._metrics.shadow_running.labels(self.model).set(0)
        log.info("shadow: ended", model=self.model, why=why, rows=self._rows, changed=self._changed)


def tensors_of(prediction: Prediction) -> Prediction:
    """A prediction without what a server's reply has beside its tensors: its own name and version, say."""
    if all(output.name for output in prediction.outputs):
        return prediction
    kept = [at for at, output in enumerate(prediction.outputs) if output.name]
    outputs, data = (tuple(parts[at] for at in kept) for parts in (prediction.outputs, prediction.data))
    return structs.replace(prediction, outputs=outputs, data=data)
