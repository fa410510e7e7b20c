"""A model declared exact → the lengths at which batch-mates or padding change a bit of a row: none, or it is rejected.

It tests every length from 4 to 62, since kernels differ by length: the one-row pool is inexact at lengths ≡ 3 mod 4
only, the `ReduceSum` pool almost everywhere (docs/architecture.md; `tests/models/test_minilm.py` shows both).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foreseen.models.measure.check import batches
from foreseen.models.measure.gate import runs_alone
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.measure import lengths, uniform
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.modelspec.rows import tokens
from foreseen.types import Row

LENGTHS = range(4, 63)
PADDED_TO = 64
FAR_PADDED_TO, FAR_EVERY = 256, 10  # long padding is dear: every tenth length gets it
ROUNDS = 2


def changed(session: GraphSession, manifest: Manifest, like: Sequence[Row], rounds: int = ROUNDS) -> list[int]:
    """The lengths at which any bit of any output differs from the row's own run; values are drawn from `like`.

    Empty as well for models that are not declared exact, whose rows have one size, or that run every row alone.
    """
    if not manifest.exact or runs_alone(manifest) or not lengths(manifest):
        return []
    rows = [uniform(manifest, like[i % len(like)], length) for i, length in enumerate(LENGTHS)]
    alone = [_bits(session.run([row])[0]) for row in rows]
    found = set()
    for members, company in _runs(rows, manifest, like[0], rounds):
        together = session.run([*(rows[i] for i in members), *company])
        for i, outputs in zip(members, together, strict=False):
            if _bits(outputs) != alone[i]:
                found.add(tokens(rows[i], manifest.model))
    return sorted(found)


def _runs(rows: list[Row], manifest: Manifest, like: Row, rounds: int) -> Iterator[tuple[list[int], list[Row]]]:
    """Which rows run together, and with which rows that pad them: a row twice, pairs, random batches to 32."""
    near, far = uniform(manifest, like, PADDED_TO), uniform(manifest, like, FAR_PADDED_TO)
    for i in range(len(rows)):
        yield [i, i], []
        yield [i], [near]
    for i in range(0, len(rows), FAR_EVERY):
        yield [i], [far]
    for members in batches(len(rows), rounds=rounds):
        yield members, []


def _bits(outputs: RowOutputs) -> list[bytes]:
    return [array.tobytes() for array in outputs]
