"""Warms through a running proxy, which stores what it answers. Needs neither its secret nor its Redis.

Rows with given outputs are imported, for which the proxy wants an operators' token.

The proxy's metadata give the model's inputs. Equal rows are sent once; the proxy's `Cache-Status` says how many of a
request's rows it had, but not which. Rows are named by a digest of their request, since only the proxy can make keys.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from foreseen.errors import BadInput, ModelFailed, ModelUnavailable, SetupError, TooLarge
from foreseen.modelspec.artifact import fields_digest
from foreseen.modelspec.manifest import (
    BATCH,
    ClientInput,
    ClientOutput,
    ClientSignature,
    Dim,
    Manifest,
    ModelInput,
    ModelOutput,
    ModelSignature,
)
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.protocol.wire import InputTensor
from foreseen.tenants.tenant import PUBLIC
from foreseen.types import Array, Output, Prediction
from foreseen.warm.model.client import ClientReply, V2Client
from foreseen.warm.plan import COMPUTED, FAILED, HIT, IMPORTED, Plan, Warmed
from foreseen.warm.read.keys import ClientBatch, given_of
from foreseen.warm.write.importer import MADE_AT_COLUMN, OUTPUT_PREFIX, SECONDS_COLUMN, facts_of, given_outputs

ROWS_PER_REQUEST = 128
UNDER_WAY = 2


class ViaProxy:
    """Warms one model of one proxy."""

    def __init__(
        self,
        url: str,
        model: str,
        rows_per_second: float | None,
        patience_seconds: float,
        key: str | None = None,
        tenant: str | None = None,
    ) -> None:
        """`key` is that of the tenant who asks; `tenant` the one that rows are imported for."""
        self._client = V2Client(url, model, patience_seconds, key)
        self._tenant = tenant
        try:
            described = self._client.metadata()
            self.manifest = manifest_of(described, model)
        except ModelUnavailable as error:
            self._client.close()
            raise SetupError(f"{error}; start it (foreseen up), or correct --url") from None
        except SetupError:
            self._client.close()
            raise
        self.digest = str(described.get("parameters", {}).get("digest", ""))
        self.columns: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.token: str | None = None
        """If it is given, rows come with their outputs, which are imported."""
        self.answered: Callable[[int], None] = lambda _: None
        """Called with the number of rows whenever some of a batch are through, in any thread."""
        self._rate = rows_per_second
        self._not_before = 0.0
        self._threads = ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="warm")

    def warm(self, batch: pa.RecordBatch, *, wanted: bool = False) -> Warmed:
        if self.token is not None:
            return self._import(batch, self.token)
        bad: dict[int, str] = {}
        keys: list[bytes] = [b""] * batch.num_rows
        warmed = Warmed(keys, np.full(batch.num_rows, FAILED, np.int8), bad, {})
        flying: list[Future[None]] = []
        seen: set[bytes] = set()
        again: list[int] = []
        for given in given_of(batch, self.manifest, self.columns, bad):
            fresh: list[int] = []
            for i, place in enumerate(given.places.tolist()):
                keys[place] = key = _name(given, i)
                (again if key in seen else fresh).append(place if key in seen else i)
                seen.add(key)
            for part in _parts(given, fresh):
                self._wait_turn(len(part.places))
                if len(flying) == UNDER_WAY:
                    flying.pop(0).result()
                flying.append(self._threads.submit(self._send, part, warmed, wanted))
        for one in flying:
            one.result()
        failed = {keys[place]: why for place, why in bad.items() if keys[place]}
        for place in again:
            if keys[place] in failed:
                bad[place] = failed[keys[place]]
            else:
                warmed.codes[place] = HIT
        return warmed

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()

    def _import(self, batch: pa.RecordBatch, token: str) -> Warmed:
        """Import rows with their given outputs."""
        bad: dict[int, str] = {}
        warmed = Warmed([b""] * batch.num_rows, np.full(batch.num_rows, FAILED, np.int8), bad, {})
        plan = Plan(manifest=self.manifest, scope=PUBLIC, digest=self.digest, outputs=self.outputs)
        outputs, (made_at, seconds) = given_outputs(batch, plan, bad), facts_of(batch)
        alike = all(isinstance(column, np.ndarray) for column in outputs)
        for given in given_of(batch, self.manifest, self.columns, bad):
            good = [i for i, place in enumerate(given.places.tolist()) if place not in bad]
            for part in _parts(given, good, ROWS_PER_REQUEST if alike else 1):
                rows = part.places
                tensors = [(t.name, t.datatype, t.array) for t in part.tensors]
                for spec, column in zip(self.manifest.model.outputs, outputs, strict=True):
                    array = column[rows] if isinstance(column, np.ndarray) else np.asarray(column[int(rows[0])])[None]
                    tensors.append((OUTPUT_PREFIX + spec.name, spec.datatype, array))
                tensors += [(MADE_AT_COLUMN, "FP64", made_at[rows]), (SECONDS_COLUMN, "FP32", seconds[rows])]
                self._wait_turn(len(rows))
                self._bring(tensors, part, token, warmed)
        return warmed

    def _bring(self, tensors: Sequence[tuple[str, str, Array]], part: ClientBatch, token: str, warmed: Warmed) -> None:
        """One request; where it is refused, its halves, until the culprit stands alone."""
        parameters = orjson.loads(part.parameters[0]) if part.parameters and part.parameters[0] else {}
        try:
            had = self._client.import_rows(tensors, {**parameters, "digest": self.digest}, token, self._tenant)
        except (BadInput, TooLarge) as error:
            if len(part.places) == 1:
                warmed.reasons[int(part.places[0])] = str(error)
                return
            half = len(part.places) // 2
            for low, high in ((0, half), (half, len(part.places))):
                cut = [(name, datatype, array[low:high]) for name, datatype, array in tensors]
                self._bring(cut, part.part(low, high), token, warmed)
            return
        warmed.codes[part.places] = IMPORTED
        warmed.codes[part.places[had]] = HIT
        self.answered(len(part.places))

    def _send(self, given: ClientBatch, warmed: Warmed, wanted: bool) -> None:
        """One request; where it is refused, its halves, until the culprit stands alone."""
        try:
            parameters = given.parameters[0] if given.parameters else b""
            reply = self._client.infer([(t.name, t.datatype, t.array) for t in given.tensors], parameters)
        except (BadInput, TooLarge, ModelFailed) as error:
            if len(given.places) == 1:
                warmed.reasons[int(given.places[0])] = str(error)
                return
            half = len(given.places) // 2
            self._send(given.part(0, half), warmed, wanted)
            self._send(given.part(half, len(given.places)), warmed, wanted)
            return
        had = hits_of(reply.cache_status, len(given.places))
        warmed.codes[given.places[:had]] = HIT
        warmed.codes[given.places[had:]] = COMPUTED
        self.answered(len(given.places))
        if wanted:
            self._keep(given, reply, warmed)

    def _keep(self, given: ClientBatch, reply: ClientReply, warmed: Warmed) -> None:
        outputs = reply.response.outputs
        for i, place in enumerate(given.places.tolist()):
            heads = tuple(Output(o.name, o.datatype, o.array[i, ...].shape) for o in outputs)
            data = tuple(raw_of(o.array[i, ...], DATATYPES[o.datatype]) for o in outputs)
            warmed.predictions[warmed.keys[place]] = Prediction(heads, data, self.digest, time.time(), 0.0, 0.0)

    def _wait_turn(self, rows: int) -> None:
        if self._rate is None:
            return
        now = time.monotonic()
        if self._not_before > now:
            time.sleep(self._not_before - now)
        self._not_before = max(now, self._not_before) + rows / self._rate


def hits_of(cache_status: str, rows: int) -> int:
    """How many of a request's rows the proxy had, by its `Cache-Status` (RFC 9211)."""
    if re.search(r";\s*hit\b", cache_status):
        return rows
    partial = re.search(r'fwd=partial.*?detail="(\d+)/', cache_status)
    return min(int(partial[1]), rows) if partial else 0


def _parts(given: ClientBatch, fresh: Sequence[int], most: int = ROWS_PER_REQUEST) -> list[ClientBatch]:
    """Requests of rows with the same parameters."""
    parts, at = [], 0
    while at < len(fresh):
        end = at + 1
        while end < len(fresh) and end - at < most and _same(given, fresh[at], fresh[end]):
            end += 1
        rows = np.array(fresh[at:end])
        tensors = [InputTensor(t.name, t.datatype, t.array[rows]) for t in given.tensors]
        parts.append(
            ClientBatch(given.places[rows], tensors, [given.parameters[fresh[at]]] if given.parameters else [])
        )
        at = end
    return parts


def _same(given: ClientBatch, one: int, other: int) -> bool:
    return not given.parameters or given.parameters[one] == given.parameters[other]


def _name(given: ClientBatch, i: int) -> bytes:
    parts = [raw_of(t.array[i, ...], DATATYPES[t.datatype]) for t in given.tensors]
    shapes = [repr(t.array.shape[1:]).encode() for t in given.tensors]
    return bytes.fromhex(fields_digest(*parts, *shapes, given.parameters[i] if given.parameters else b""))


def manifest_of(described: dict[str, Any], model: str) -> Manifest:
    """The part of a manifest that the metadata contain: names, datatypes and shapes."""
    try:
        inputs = [(i["name"], i["datatype"], _dims(i["name"], _shape_of(i))) for i in described["inputs"]]
        outputs = [(o["name"], o["datatype"], _dims(o["name"], o["shape"])) for o in described["outputs"]]
        if any(datatype not in DATATYPES for _, datatype, _ in inputs + outputs):
            raise ValueError("datatype")
    except (KeyError, TypeError, ValueError, msgspec.ValidationError):
        raise SetupError(f"model {model!r}: the server's metadata cannot be read; is --url a V2 server?") from None
    signature = ModelSignature(tuple(ModelInput(*i) for i in inputs), tuple(ModelOutput(*o) for o in outputs))
    # Whether an input takes NaN the metadata do not say; the proxy refuses the rows that it does not take.
    taken = tuple(ClientInput(*i, nonfinite=DATATYPES[i[1]].kind == "f") for i in inputs)
    seen = ClientSignature(taken, tuple(ClientOutput(*o) for o in outputs))
    return Manifest(model, signature, client=seen)


def _shape_of(described: dict[str, Any]) -> Sequence[int]:
    """Texts of shape [-1, 1] are one a row; a proxy takes them as [-1], too."""
    shape: Sequence[int] = described["shape"]
    return shape[:1] if described["datatype"] == "BYTES" and list(shape[1:]) == [1] else shape


def _dims(name: str, shape: Sequence[int]) -> tuple[Dim, ...]:
    return (BATCH, *(f"{name}_{axis}" if dim < 0 else int(dim) for axis, dim in enumerate(shape[1:], 1)))
