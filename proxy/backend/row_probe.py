"""Probes whether rows of an upstream model are independent of their batch: sends random rows alone and together.

A model whose rows depend on each other must not be cached by the row. Metadata do not say so. The probe sends the same
rows alone, in one batch, in other orders and with some left out; its result holds for the version that answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import Struct

from foreseen.errors import BadInput, DigestMoved, ForeseenError, ModelFailed, ModelUnavailable
from foreseen.modelspec.invariance import difference, random_rows
from foreseen.modelspec.manifest import ModelSignature
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import member_names, reply_of, tensor_outputs
from foreseen.protocol.tensors import array_of_raw
from foreseen.types import Prediction, RequestOptions, Row

log = structlog.get_logger()

PROBE_ROWS = 6
PROBE_DEADLINE_SECONDS = 30.0
PROBE_PAUSE_SECONDS = 5.0
"""Between two tries, where the server could not answer the first."""
ORDERS: Sequence[Sequence[int]] = (tuple(range(PROBE_ROWS)), tuple(range(PROBE_ROWS))[::-1])
"""The batches that are asked, by the places of their rows."""
MAX_RESULTS = 8
"""Versions whose results are remembered."""

Ask = Callable[[Sequence[Row], bytes, RequestOptions], Awaitable[list[Prediction]]]
Pair = tuple[Prediction, Prediction]
"""What was answered to a row alone, and in a batch."""
Gap = Callable[[Sequence[RowOutputs], Sequence[RowOutputs]], float]


class ProbeResult(Struct, frozen=True):
    """What the probe has shown of one version of a model. None: it could not decide."""

    independent: bool | None
    why: str
    worst: float | None = None
    """The largest difference seen of an answer alone and in a batch."""


class RowProbe:
    """Probes the versions of one model, one probe at a time.

    `gap` measures how far the answers of a batch are from those of single rows; more than `tolerance` is a dependence.
    `compares_members`: also what replies hold beside their tensors.
    """

    orders = ORDERS

    def __init__(self, model: str, ask: Ask, gap: Gap, tolerance: float, *, compares_members: bool) -> None:
        self._model = model
        self._ask = ask
        self._gap = gap
        self._tolerance = tolerance
        self._compares_members = compares_members
        self._results: dict[str, ProbeResult] = {}
        self._task: asyncio.Task[None] | None = None

    def result(self, digest: str) -> ProbeResult | None:
        """What is known of a version; None where it has not been probed."""
        return self._results.get(digest)

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self, digest: str, signature: ModelSignature) -> None:
        """Probe this version in the background, unless it has been or a probe is running."""
        if digest not in self._results and not self.is_running:
            self._task = asyncio.get_running_loop().create_task(self._run(digest, signature))

    async def wait(self, seconds: float) -> None:
        """Wait for the probe that is running, at most so long."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, digest: str, signature: ModelSignature) -> None:
        try:
            async with asyncio.timeout(PROBE_DEADLINE_SECONDS):
                digest, result = await self._probed(self._rows(signature))
        except (ModelUnavailable, TimeoutError):
            await asyncio.sleep(PROBE_PAUSE_SECONDS)  # the next look at the metadata starts another
            return
        except ForeseenError as error:
            result = ProbeResult(None, f"a random row was refused: {error}")
        except DigestMoved:
            return
        self._results = {**dict(list(self._results.items())[1 - MAX_RESULTS :]), digest: result}
        write = log.warning if result.independent is False else log.info
        write("upstream probed", model=self._model, rows_independent=result.independent, why=result.why)

    def _rows(self, signature: ModelSignature) -> list[Row]:
        """The rows that are asked, `PROBE_ROWS` of them."""
        return random_rows(signature, PROBE_ROWS)

    async def _probed(self, rows: list[Row]) -> tuple[str, ProbeResult]:
        """The version that answered, and what its answers show. Raises DigestMoved where several versions answered."""
        options = RequestOptions(asyncio.get_running_loop().time() + PROBE_DEADLINE_SECONDS, "background")
        alone = [(await self._ask([row], b"", options))[0] for row in rows]
        digest = alone[0].digest
        try:
            pairs = [pair for order in self.orders for pair in await self._batch(rows, alone, order, options)]
        except (BadInput, ModelFailed) as error:
            return digest, ProbeResult(False, f"a batch is refused: {error}")
        everything = (*alone, *(batched for _, batched in pairs))
        if len({prediction.digest for prediction in everything}) > 1:
            raise DigestMoved(digest)
        if len({tuple(head.name for head in tensor_outputs(one)) for one in everything}) > 1:
            return digest, ProbeResult(False, "which outputs it answers with changes from request to request")
        answers = [arrays_of(prediction) for prediction in alone]
        worst = max(self._gap([arrays_of(one)], [arrays_of(batched)]) for one, batched in pairs)
        if worst > self._tolerance:
            return digest, ProbeResult(False, f"an answer changes by {worst:g} with its batch-mates", worst)
        if all(difference(answers[:1], [other]) == 0 for other in answers[1:]):
            return digest, ProbeResult(None, "all random rows got one answer, which shows nothing")
        if self._compares_members and await self._members_depend(rows[0], alone, pairs, options):
            return digest, ProbeResult(False, "the parameters of a reply change with the batch-mates")
        return digest, ProbeResult(True, f"alone and in batches answers differ by {worst:g} at most", worst)

    async def _batch(
        self, rows: Sequence[Row], alone: Sequence[Prediction], order: Sequence[int], options: RequestOptions
    ) -> list[Pair]:
        """Ask some of the rows together."""
        batched = await self._ask([rows[at] for at in order], b"", options)
        return [(alone[at], one) for at, one in zip(order, batched, strict=True)]

    async def _members_depend(
        self, row: Row, alone: Sequence[Prediction], pairs: Sequence[Pair], options: RequestOptions
    ) -> bool:
        """Whether what replies hold beside their tensors changes with the batch-mates. What changes by itself (a time,
        a number of the request) does not count: `row`, the first of those asked alone, shows what that is."""
        if all(reply_of([one]) == reply_of([other]) for one, other in pairs):
            return False
        again = (await self._ask([row], b"", options))[0]
        changing = member_names(reply_of(alone[:1])) - member_names(reply_of([alone[0], again]))
        for one, other in pairs:
            named = member_names(reply_of([one])) | member_names(reply_of([other]))
            if named - changing - member_names(reply_of([one, other])):
                return True
        return False


def arrays_of(prediction: Prediction) -> RowOutputs:
    heads = zip(tensor_outputs(prediction), prediction.data, strict=False)  # the rest of the reply comes last
    return tuple(array_of_raw(data, DATATYPES[head.datatype], head.shape, head.name) for head, data in heads)
