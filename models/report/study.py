"""A fetched model → figures of every candidate precision, measured on this machine.

All candidates run the same rows; the reference is the fp32 graph with each row alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.build.build import Bench, builder_of, make
from foreseen.models.build.publish import GRAPH_NAME
from foreseen.models.measure import check, exact, heads, labelled, shaping
from foreseen.models.measure.gate import Figures, reasons, runs_alone
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.measure import Timing, cells, speedups, timings
from foreseen.models.measure.samples import samples
from foreseen.models.measure.shaping import Shaped
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.artifact import Artifact
from foreseen.modelspec.manifest import Manifest, Precision
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.modelspec.shapes import Shapes
from foreseen.types import Array, Row

OWN_ROWS = 1024
TIMED_ROWS = 8
ROUNDS_OF_ROWS = 4  # about how often each precision runs all rows: alone, in batches, padded, timed


class Questions(Struct, frozen=True):
    """The rows that candidates run, and the head that turns answers into labels."""

    rows: list[Row]
    head: check.Head
    what: str
    """In words, for the report: which rows, which head."""
    truth: Array | None = None
    """The true label of every row, INT64 [n], where known."""


class Candidate(Struct, frozen=True):
    """One precision of one model, as `report.json` holds it."""

    precision: Precision
    passed: bool
    why: str
    """Why it was rejected, or chosen."""
    digest: str | None = None
    """The artifact digest; None where it could not be made."""
    bytes: int | None = None
    speedup: float | None = None
    """fp32 time / its time, one row of 64 tokens, one thread, interleaved medians."""
    figures: Figures = Figures()
    accuracy: float | None = None
    """Accuracy: share of rows with the true label; None if true labels are unknown."""
    timings: tuple[Timing, ...] = ()
    nodes: dict[str, int] = {}
    """Execution provider → nodes."""
    shapes: Shapes = Shapes()
    """Of the batches that it is run in."""
    shaped: tuple[Shaped, ...] = ()
    """What was measured of each kind of shapes, where the manifest leaves the choice."""


class Report(Struct, frozen=True):
    """What was measured of a model on this machine."""

    model: str
    best: str | None
    """The precision that a full build takes; None where nothing passes."""
    candidates: list[Candidate]
    asked: str
    """Which rows, which head."""
    subject: str
    """Digest of what decides the figures beside the machine: the manifest's model, sources, gates and precisions."""
    processor: str
    runtime: str


class MadeCandidate(Struct, frozen=True):
    """A candidate that was made: the artifact, and the folder of exactly its files."""

    artifact: Artifact
    folder: Path
    session: GraphSession


def measure(
    bench: Bench, say: BuildProgress, files: labelled.Files | None
) -> tuple[str, list[Candidate], dict[str, MadeCandidate]]:
    """Make and measure every precision of the manifest. Returns the questions, the candidates and the artifacts."""
    manifest = bench.manifest
    fp32 = GraphSession(bench.graph, manifest.model, "fp32")
    with say.step(f"this will take about {_minutes(bench, fp32)} min"):
        pass
    with say.step("make the questions and the head that labels the answers"):
        asked = _questions(bench, fp32, files)
    with say.step(f"run fp32 on {len(asked.rows)} rows, each alone"):
        reference = fp32.alone(asked.rows)
    made, lost = _made(bench, say)
    with say.step("time one row, candidates interleaved"):
        faster = speedups(fp32, {name: one.session for name, one in made.items()}, manifest, _middle(asked.rows))
    candidates = list(lost)
    for precision, one in made.items():
        candidates.append(_candidate(manifest, asked, reference, one, faster[precision], say))
    order = list(manifest.precisions)
    return asked.what, sorted(candidates, key=lambda c: order.index(c.precision)), made


def _minutes(bench: Bench, fp32: GraphSession) -> int:
    """What measuring every precision will take, from the time that a few rows take."""
    rows = samples(bench.manifest, bench.files, TIMED_ROWS)
    fp32.alone(rows[:1])
    began = time.perf_counter()
    fp32.alone(rows)
    each = (time.perf_counter() - began) / TIMED_ROWS
    return max(1, round(each * OWN_ROWS * ROUNDS_OF_ROWS * (1 + len(bench.manifest.precisions)) / 60))


def _questions(bench: Bench, fp32: GraphSession, files: labelled.Files | None) -> Questions:
    if files is not None:
        rows, truth, head, what = labelled.questions(bench.manifest, bench.files, fp32, files)
        return Questions(rows, head, what, truth)
    own = getattr(builder_of(bench.manifest), "truth", None)
    if own is not None:
        rows, truth = own()
        return Questions(rows, heads.largest, f"{len(rows)} labelled rows that the builder holds back", truth)
    rows = samples(bench.manifest, bench.files, OWN_ROWS)
    vectors = check.vectors(fp32.alone(rows), bench.manifest.model)
    head = heads.head_of(bench.manifest, vectors)
    name = "the model's own head" if head is heads.largest else "a seeded k-means head"
    return Questions(rows, head, f"{len(rows)} rows that the build makes, {name}")


def _made(bench: Bench, say: BuildProgress) -> tuple[dict[str, MadeCandidate], list[Candidate]]:
    made: dict[str, MadeCandidate] = {}
    lost = []
    for precision in bench.manifest.precisions:
        try:
            artifact, folder = make(bench, precision, say)
        except SetupError as error:
            lost.append(Candidate(precision, passed=False, why=str(error)))
        else:
            made[precision] = MadeCandidate(
                artifact, folder, GraphSession(folder / GRAPH_NAME, bench.manifest.model, precision)
            )
    return made, lost


def _candidate(
    manifest: Manifest,
    asked: Questions,
    reference: list[RowOutputs],
    one: MadeCandidate,
    speedup: float,
    say: BuildProgress,
) -> Candidate:
    precision = one.artifact.precision
    with say.step(f"measure {precision} in batches of ragged and fixed shapes, and alone"):
        shapes, shaped = shaping.decide(one.session, manifest, asked.rows)
    session = one.session.in_shapes(manifest, shapes)
    with say.step(f"compare {precision} with fp32, alone and in batches"):
        figures, accuracy = compare(manifest, asked, reference, session)
    with say.step(f"time {precision} at batch sizes and lengths", cells(manifest)) as part:
        table = timings(session, manifest, _middle(asked.rows), part)
    failed = reasons(manifest, figures)
    return Candidate(
        precision=next(p for p in manifest.precisions if p == precision),
        passed=not failed,
        why="; ".join(failed),
        digest=one.artifact.digest,
        bytes=one.artifact.graph.bytes,
        speedup=round(speedup, 3),
        figures=figures,
        accuracy=accuracy,
        timings=table,
        nodes=one.session.nodes(),
        shapes=shapes,
        shaped=shaped,
    )


def compare(
    manifest: Manifest, asked: Questions, reference: list[RowOutputs], session: GraphSession
) -> tuple[Figures, float | None]:
    """Agreement with fp32, batch invariance, and accuracy where the truth is known."""
    alone = session.alone(asked.rows)
    wanted, got = check.vectors(reference, manifest.model), check.vectors(alone, manifest.model)
    cosine = check.cosines(wanted, got)
    changed = None if runs_alone(manifest) else check.invariance(session, asked.rows, alone, asked.head)
    labels = asked.head(got)
    figures = Figures(
        cosine=float(cosine.mean()),
        least_cosine=float(cosine.min()),
        flips=changed.flips if changed else None,
        max_difference=changed.max_difference if changed else None,
        changed_lengths=tuple(exact.changed(session, manifest, asked.rows)),
        agreement=float(np.mean(labels == asked.head(wanted))),
        fp32_difference=max(check.difference(a, b) for a, b in zip(reference, alone, strict=True)),
    )
    return figures, None if asked.truth is None else float(np.mean(labels == asked.truth))


def _middle(rows: list[Row]) -> Row:
    """A row of median size: its values feed the timing runs."""
    return sorted(rows, key=lambda row: sum(tensor.size for tensor in row.tensors))[len(rows) // 2]
