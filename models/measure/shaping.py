"""One candidate → the shapes of its batches: every kind measured for exactness and speed, and the choice.

A fixed set follows from the measured cost. A length stays in the set if padding to the next one is expensive. A batch
has as many rows as cost little more than one row: often one on a CPU, many on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import get_args

from msgspec import Struct
from msgspec.structs import replace

from foreseen.errors import SetupError
from foreseen.models.measure import check, exact
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.measure import uniform
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.rows import tokens
from foreseen.modelspec.shapes import RAGGED, SINGLE, Kind, Shapes, open_dimension
from foreseen.types import Row

LADDER = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
COUNTS = (1, 2, 4, 8, 16, 32)
CLOSE = 0.85  # a length whose cost is above this share of the next one's is left out
MOST_TIMES = 2.0  # what a batch may cost of what one row costs: a lone row pays for the whole batch
BETTER = 1.1  # more rows are taken where they give so many times the rows per second
LEVEL = 0.95  # within 5 % the simpler kind wins: ragged, then fixed, then single
TIMINGS = 3
MEASURED_ROWS = 48
RAGGED_ROWS = 8  # of a batch of neighbours in length, as the batcher makes them under load


class Shaped(Struct, frozen=True):
    """One kind of shapes of one candidate, measured."""

    shapes: Shapes
    difference: float | None = None
    """The largest change of any element that batch-mates make; None where it cannot be run so."""
    rows_per_second: float | None = None
    why: str = ""

    @property
    def is_exact(self) -> bool:
        return self.difference == 0.0


def decide(session: GraphSession, manifest: Manifest, rows: Sequence[Row]) -> tuple[Shapes, tuple[Shaped, ...]]:
    """The shapes to run in, and the measurements of each kind if the manifest says `auto`. Raises SetupError if it
    requires a fixed set and none is possible."""
    wanted = manifest.batching.shapes
    if manifest.rows == "together" or manifest.batching.alone:
        return (RAGGED if manifest.rows == "together" else SINGLE), ()
    if wanted == "ragged":
        return RAGGED, ()
    if wanted == "fixed":
        try:
            return fixed_set(session, manifest, rows), ()
        except ValueError as error:
            raise SetupError(f"model {manifest.name!r}: batching.shapes: {error}, so there is no fixed set") from None
    found = measured(session, manifest, rows, get_args(Kind))
    return chosen(found), found


def chosen(found: Sequence[Shaped]) -> Shapes:
    """The fastest that is exact, the simpler kind within 5 %; else every row alone."""
    passed = [one for one in found if one.is_exact]
    if not passed:
        return SINGLE
    fastest = max(one.rows_per_second or 0.0 for one in passed)
    return next(one.shapes for one in passed if (one.rows_per_second or 0.0) >= LEVEL * fastest)


def measured(
    session: GraphSession, manifest: Manifest, rows: Sequence[Row], kinds: Sequence[Kind]
) -> tuple[Shaped, ...]:
    """Bits and speed of every kind, on the same rows."""
    some = sorted(rows[:MEASURED_ROWS], key=lambda row: tokens(row, manifest.model))
    return tuple(_measured(kind, session, manifest, some) for kind in kinds)


def _measured(kind: Kind, session: GraphSession, manifest: Manifest, rows: Sequence[Row]) -> Shaped:
    shapes = RAGGED if kind == "ragged" else SINGLE
    if kind == "fixed":
        try:
            shapes = fixed_set(session, manifest, rows)
        except Exception as error:  # noqa: BLE001 - a graph that takes no other size says so in its own words
            return Shaped(Shapes("fixed"), why=f"{type(error).__name__}: {str(error)[:200]}")
    try:
        shaped = session.in_shapes(manifest, shapes)
        difference = 0.0 if kind == "single" else _difference(shaped, manifest, rows)
        return Shaped(shapes, difference, round(_rows_per_second(shaped, kind, rows), 1))
    except Exception as error:  # noqa: BLE001 - as above
        return Shaped(shapes, why=f"{type(error).__name__}: {str(error)[:200]}")


def _difference(session: GraphSession, manifest: Manifest, rows: Sequence[Row]) -> float:
    """The largest change of a row by its batch-mates; at least LEAST_DIFFERENCE where a bit differs at some length."""
    alone = session.alone(rows)
    found = check.invariance(session, rows, alone, lambda vectors: vectors[:, 0]).max_difference
    bits = exact.changed(session, replace(manifest, exact=True), rows, rounds=1)
    return max(found, check.LEAST_DIFFERENCE) if bits else found


def _rows_per_second(session: GraphSession, kind: Kind, rows: Sequence[Row]) -> float:
    step = RAGGED_ROWS if kind == "ragged" else len(rows)
    parts = [rows[at : at + step] for at in range(0, len(rows), step)]
    best = float("inf")
    for _ in range(TIMINGS):
        began = time.perf_counter()
        for part in parts:
            session.run(part)
        best = min(best, time.perf_counter() - began)
    return len(rows) / best


def fixed_set(session: GraphSession, manifest: Manifest, rows: Sequence[Row]) -> Shapes:
    """The lengths and numbers of rows derived from the cost, or set by the manifest. Raises ValueError if rows differ
    in several dimensions."""
    dimension = open_dimension(manifest)
    said = manifest.batching.fixed_rows
    if dimension is None:
        return Shapes("fixed", (), (said or _count(session, manifest, rows[0]),))
    likes = {length: uniform(manifest, rows[0], length) for length in _candidates(manifest, dimension, rows)}
    costs = {length: _seconds(session, [like]) for length, like in likes.items()}
    lengths = manifest.batching.lengths or kept(costs)
    likes |= {length: uniform(manifest, rows[0], length) for length in lengths if length not in likes}
    return Shapes("fixed", lengths, tuple(said or _count(session, manifest, likes[length]) for length in lengths))


def _candidates(manifest: Manifest, dimension: str, rows: Sequence[Row]) -> list[int]:
    hinted = manifest.samples.sizes.get(dimension)
    if hinted:
        return sorted(set(hinted))
    longest = max(
        [tokens(row, manifest.model) for row in rows]
        + [i.tokenizer.max_tokens for i in manifest.seen.inputs if i.tokenizer is not None]
    )
    below = [length for length in LADDER if length < longest]
    return [*below, next((length for length in LADDER if length >= longest), longest)]


def kept(costs: dict[int, float]) -> tuple[int, ...]:
    """The lengths that are worth a shape of their own: from the longest down, those much cheaper than the next."""
    lengths = sorted(costs, reverse=True)
    taken = lengths[:1]
    for length in lengths[1:]:
        if costs[length] <= CLOSE * costs[taken[-1]]:
            taken.append(length)
    return tuple(sorted(taken))


def _count(session: GraphSession, manifest: Manifest, row: Row) -> int:
    """As many rows as cost little more than one and raise the rows per second."""
    limits = manifest.batching
    one = _seconds(session, [row])
    best, speed = 1, 1 / one
    for count in COUNTS[1:]:
        if count > limits.max_rows or count * tokens(row, manifest.model) > limits.max_tokens:
            break
        seconds = _seconds(session, [row] * count)
        if seconds > MOST_TIMES * one:
            break
        if count / seconds >= BETTER * speed:
            best, speed = count, count / seconds
    return best


def _seconds(session: GraphSession, rows: Sequence[Row]) -> float:
    session.run(rows)
    taken = []
    for _ in range(TIMINGS):
        began = time.perf_counter()
        session.run(rows)
        taken.append(time.perf_counter() - began)
    return min(taken)
