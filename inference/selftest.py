"""Self-test of a new session: it answers, a row's answer does not depend on its batch-mates, and the cost of a run.

It runs before the process is ready. The rows are the manifest's example, if that is in the model's own tensors, and
otherwise random rows of its shapes: the model process has no tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NoReturn, Protocol

import structlog
from msgspec import Struct

from foreseen.errors import BadInput, ModelFailed, SetupError
from foreseen.modelspec import made_up
from foreseen.modelspec.invariance import difference
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.modelspec.rows import split, stack, whole_row
from foreseen.types import Row

_log = structlog.get_logger()

_LENGTHS = (4, 7, 13, 16)
"""Lengths of the generated rows. 7 is ≡ 3 mod 4, where an inexact pool differs (docs/architecture.md, Exactness)."""
_SHORT, _LONG = 8, 64
_TIMINGS = 5
_LEAST_START_TOKENS, _MOST_START_TOKENS = 2, 256


class RowRunner(Protocol):
    """What answers rows: a session, or a test double."""

    def run(self, rows: Sequence[Row], /) -> list[RowOutputs]: ...


class Proof(Struct, frozen=True):
    """Result of the self-test, with this provider on this machine; the build may have run on another.

    `difference` is the largest between a row alone and in a batch; 0.0 is bit-equal.
    """

    difference: float
    independent: bool
    """Whether that is within the manifest's `gates.max_difference`: if not, its rows are not cached one by one."""
    start_tokens: int
    """What starting a run costs, in tokens: the batcher pads as long as that is cheaper than another run."""


def prove(runner: RowRunner, manifest: Manifest) -> Proof:
    """Run example rows alone, alone again and together. Raises SetupError if a run fails or contradicts the manifest.

    A generated row that the model refuses is left out. If it refuses all of them there is no proof: the model is
    served, but not cached per row.
    """
    lonely = manifest.batching.alone or manifest.rows == "together"
    try:
        rows = _taken(runner, manifest)
        if not rows:
            _log.warning("self-test: the model accepts no random row; add an [example]", model=manifest.name)
            return Proof(0.0, lonely, _LEAST_START_TOKENS)
        alone = [runner.run([row])[0] for row in rows]
        again = [runner.run([row])[0] for row in rows]
        batches = [] if lonely else [runner.run(rows), runner.run(rows[::-1])[::-1], runner.run(rows * 2)[: len(rows)]]
    except Exception as error:  # noqa: BLE001 -- whatever it is, the model does not answer
        raise SetupError(f"model {manifest.name!r}: the self-test's run failed: {error}") from None
    if repeated := difference(alone, again):
        message = "two runs of one row differ"
        if manifest.cacheable and manifest.exact:
            raise SetupError(f"model {manifest.name!r}: {message}, but the manifest says exact")
        _log.warning(message, model=manifest.name)
    worst = max((difference(alone, batch) for batch in batches), default=0.0)
    if worst and manifest.exact:
        raise SetupError(
            f"model {manifest.name!r}: a row's answer changes by {worst:g} with its batch-mates on this machine, "
            "but the manifest says exact; rebuild it here, or set exact = false"
        )
    allowed = manifest.gates.max_difference
    independent = allowed is None or max(worst, repeated) <= allowed
    if not independent:
        _log.warning(
            "rows not independent here: not cached per row",
            model=manifest.name,
            difference=worst,
            max_difference=allowed,
        )
    return Proof(worst, independent, _start_tokens(runner, manifest))


def refuse_saturation(manifest: Manifest) -> NoReturn:
    """Raises SetupError where row-wise int8 would answer with cosine 0.978 instead of 0.9992."""
    raise SetupError(
        f"model {manifest.name!r}: 8-bit products saturate on this processor; build another precision (fp32)"
    )


def warm(runner: RowRunner, manifest: Manifest, shapes: Iterable[tuple[int, int]]) -> None:
    """Warm up: run generated batches of (rows, length), so that no request pays for the first run of its shape."""
    for count, length in shapes:
        runner.run(_prepared([_made_up(manifest, length)] * count, manifest))


def _taken(runner: RowRunner, manifest: Manifest) -> list[Row]:
    """The rows that the model answers; its manifest's own example is always kept."""
    rows = example_rows(manifest)
    given = len(rows) if _has_example(manifest) and not _padded(manifest) else int(_has_example(manifest))
    taken = rows[:given]
    for row in rows[given:]:
        try:
            runner.run([row])
        except (BadInput, ModelFailed) as error:
            _log.info("self-test: a random row is refused", model=manifest.name, why=str(error))
        else:
            taken.append(row)
    if not taken and manifest.exact:
        raise ModelFailed("the model accepts no generated row, but the manifest says exact; add an [example]")
    return taken


def example_rows(manifest: Manifest) -> list[Row]:
    """A few different rows of the model's shapes; the manifest's example is the first where it is in model tensors."""
    rows = [_made_up(manifest, length) for length in _LENGTHS] if _padded(manifest) else []
    if _has_example(manifest):
        rows = [*_given(manifest), *rows]
    if not rows:
        rows = [_made_up(manifest, 1), _made_up(manifest, 2)]  # of fixed shapes: the length is but a seed
    elif len(rows) == 1:
        rows *= 2
    return [unit for row in rows for unit in _prepared([row], manifest)]


def _start_tokens(runner: RowRunner, manifest: Manifest) -> int:
    """Fixed cost of a run over cost per token, from the best times of a short and a long row."""
    if not _padded(manifest) or manifest.rows == "together":
        return _LEAST_START_TOKENS
    short, long = (_best_seconds(runner, _made_up(manifest, length)) for length in (_SHORT, _LONG))
    per_token = (long - short) / (_LONG - _SHORT)
    if per_token <= 0:  # a GPU, or a run too short to tell
        return _MOST_START_TOKENS
    return int(min(max((short - per_token * _SHORT) / per_token, _LEAST_START_TOKENS), _MOST_START_TOKENS))


def _best_seconds(runner: RowRunner, row: Row) -> float:
    rows, best = [row], float("inf")
    for _ in range(_TIMINGS):
        started = time.perf_counter()
        runner.run(rows)
        best = min(best, time.perf_counter() - started)
    return best


def _prepared(rows: list[Row], manifest: Manifest) -> list[Row]:
    """As a session takes them: where rows go together, the request is the row."""
    if manifest.rows == "each" or not manifest.model.has_rows:
        return rows
    batch = stack(rows, manifest.model)
    return [Row(tuple(batch[spec.name] for spec in manifest.model.inputs))]


def _padded(manifest: Manifest) -> bool:
    return any(isinstance(dim, str) for i in manifest.model.keyed for dim in i.shape[1:])


def _has_example(manifest: Manifest) -> bool:
    """Whether the manifest's example is in the model's own tensors."""
    clients = [(i.name, i.datatype, i.shape) for i in manifest.seen.inputs]
    same = clients == [(i.name, i.datatype, i.shape) for i in manifest.model.keyed]
    return same and all(i.name in manifest.example for i in manifest.model.keyed)


def _given(manifest: Manifest) -> list[Row]:
    tensors = {spec.name: made_up.example(spec, manifest, {}) for spec in manifest.seen.inputs}
    if not manifest.model.has_rows:
        return [whole_row(tensors, manifest.model)]
    return split(tensors, manifest.model)


def _made_up(manifest: Manifest, length: int) -> Row:
    """A row, or a request where it cannot be cut into rows, of a length that a request may have."""
    steps = [i.tokenizer for i in manifest.seen.inputs if i.tokenizer is not None]
    tensors = made_up.tensors(manifest, min([length, *(step.max_tokens for step in steps)]), seed=length)
    return Row(tuple(tensors.values())) if manifest.model.has_rows else whole_row(tensors, manifest.model)
