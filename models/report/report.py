"""Candidates → the choice, with reasons, and `report.json`.

DATA/models/<name>/report.json         measured on rows that the build makes
DATA/models/<name>/report-<tag>.json   measured on labelled texts of one's own (--train, --test)
…/report.txt, …/report.svg             the same as tables and as a plot
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
from rich.console import Console

from foreseen.errors import SetupError
from foreseen.inference.processor import processor_family
from foreseen.models.build.build import prepare
from foreseen.models.build.publish import publish, workshop
from foreseen.models.measure import labelled
from foreseen.models.measure.gate import invariance_reasons
from foreseen.models.progress import BuildProgress
from foreseen.models.report import plot, study, tables
from foreseen.models.report.study import Candidate, Report
from foreseen.modelspec.artifact import Record, fields_digest, model_folder, read_record, write_record
from foreseen.modelspec.manifest import Manifest

TABLE_COLUMNS = 100
LEVEL = 0.9  # within 10 % the manifest's order wins, so that a fleet does not split its keys by timing noise


def build_full(
    manifest: Manifest, data: Path, say: BuildProgress, files: labelled.Files | None = None
) -> tuple[Record, Report]:
    """Make and measure every candidate, put the fastest that passes in force. Raises SetupError if none passes."""
    with workshop(data, say) as folder:
        bench = prepare(manifest, data, folder, say)
        what, candidates, made = study.measure(bench, say, files)
        report = _report(manifest, what, candidates)
        write(report, data, files)
        if report.best is None:
            whys = "; ".join(f"{c.precision}: {c.why}" for c in candidates)
            raise SetupError(f"model {manifest.name!r}: no candidate passes the gates ({whys})")
        chosen = next(c for c in candidates if c.precision == report.best)
        one = made[chosen.precision]
        record = Record(
            one.artifact, row_independent=not invariance_reasons(manifest, chosen.figures), shapes=chosen.shapes
        )
        publish(data, one.artifact, one.folder)
        write_record(data, record)
        return record, report


def measured(manifest: Manifest, data: Path, say: BuildProgress, files: labelled.Files | None = None) -> Report:
    """The report of a built model; missing measurements are made now. The artifact in force is kept."""
    read_record(data, manifest.name)
    kept = read(manifest, data, files)
    if kept is not None:
        return kept
    with workshop(data, say) as folder:
        what, candidates, _ = study.measure(prepare(manifest, data, folder, say), say, files)
    report = _report(manifest, what, candidates)
    write(report, data, files)
    return report


def decide(manifest: Manifest, candidates: list[Candidate]) -> tuple[str | None, list[Candidate]]:
    """The fastest that passes, the manifest's order within 10 %; and all candidates with their reasons."""
    passed = [c for c in candidates if c.passed]
    if not passed:
        return None, candidates
    fastest = max(c.speedup or 0.0 for c in passed)
    best = next(c for c in passed if (c.speedup or 0.0) >= LEVEL * fastest)
    return best.precision, [_with_reason(c, best, fastest) for c in candidates]


def _with_reason(candidate: Candidate, best: Candidate, fastest: float) -> Candidate:
    speed, won = candidate.speedup or 0.0, best.speedup or 0.0
    if not candidate.passed:
        return candidate
    if candidate is best:
        why = "the fastest that passes" if speed == fastest else "within 10 % of the fastest, first in the manifest"
    elif speed >= LEVEL * fastest:
        why = f"passes, {speed:.2f}× as fast as fp32, but {best.precision} is within 10 % and earlier in the manifest"
    else:
        why = f"passes, but is only {speed:.2f}× as fast as fp32; {best.precision} is {won:.2f}×"
    return msgspec.structs.replace(candidate, why=why)


def public(report: Report, chosen: str) -> dict[str, Any]:
    """What `models report --json` prints; `chosen` is the precision in force."""
    fields = ("cosine", "flips", "max_difference", "agreement")
    candidates = [
        {"precision": c.precision, "speedup": c.speedup}
        | {field: getattr(c.figures, field) for field in fields}
        | {"passed": c.passed, "why": c.why}
        for c in report.candidates
    ]
    return {"chosen": chosen, "candidates": candidates}


def path_of(data: Path, name: str, files: labelled.Files | None) -> Path:
    return model_folder(data, name) / ("report.json" if files is None else f"report-{files.tag}.json")


def read(manifest: Manifest, data: Path, files: labelled.Files | None) -> Report | None:
    """The kept report, if it was measured of today's manifest with this runtime on this kind of processor."""
    try:
        report = msgspec.json.decode(path_of(data, manifest.name, files).read_bytes(), type=Report)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    fresh = (_subject(manifest), processor_family(), onnxruntime.__version__)
    return report if (report.subject, report.processor, report.runtime) == fresh else None


def write(report: Report, data: Path, files: labelled.Files | None) -> None:
    """report.json, renamed into place; the tables and the plot beside it."""
    path = path_of(data, report.model, files)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    beside.replace(path)
    with path.with_suffix(".txt").open("w", encoding="utf-8") as text:
        tables.show_report(Console(file=text, width=TABLE_COLUMNS), report, report.best)
    plot.draw(report.model, report.candidates, path.with_suffix(".svg"))


def _report(manifest: Manifest, what: str, candidates: list[Candidate]) -> Report:
    best, candidates = decide(manifest, candidates)
    return Report(
        manifest.name, best, candidates, what, _subject(manifest), processor_family(), onnxruntime.__version__
    )


def _subject(manifest: Manifest) -> str:
    # Paths are left out: the measured files are named by their sha256.
    source = None if manifest.source is None else msgspec.structs.replace(manifest.source, url=None, folder=None)
    batching = manifest.batching
    parts: list[object] = [manifest.model, manifest.seen, source, manifest.gates, manifest.precisions, manifest.exact]
    if batching.shapes != "ragged":
        parts += [batching.shapes, batching.lengths, batching.fixed_rows]
    return fields_digest(msgspec.json.encode(parts, order="sorted"))
