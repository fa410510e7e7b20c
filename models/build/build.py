"""A manifest → an artifact in force: fetch → graph → quantize → prove → check → publish → record.

The quick build, which the first start of the program waits for, makes the manifest's first precision only and checks
it on a few dozen texts. The full build (`foreseen.models.report.report`) makes and measures every candidate on this
machine.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import msgspec
from msgspec import Struct
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.models.build.child import prove
from foreseen.models.build.fetch import fetch
from foreseen.models.build.publish import GRAPH_NAME, describe, publish, workshop
from foreseen.models.graphs.graph import to_bytes
from foreseen.models.measure import check, exact, heads
from foreseen.models.measure.gate import Figures, invariance_reasons, reasons, runs_alone
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import samples
from foreseen.models.progress import BuildProgress
from foreseen.models.quantize import quantize
from foreseen.modelspec.artifact import Artifact, Record, refuse_optional, write_record
from foreseen.modelspec.manifest import Manifest, Precision
from foreseen.modelspec.source_file import changed_file
from foreseen.types import Row

QUICK_ROWS = 48
BUILDERS = {"bert": "bert", "mpnet": "mpnet", "fingerprint": "fingerprint", "digits": "digits", "onnx": "onnx_file"}
"""What `source.builder` may say → the module of `foreseen.models.graphs` that does it."""


class Bench(Struct, frozen=True):
    """A fetched model: its fp32 graph and the files around it, in a folder that lasts as long as the build."""

    manifest: Manifest
    folder: Path
    files: Path
    """What was fetched, tokenizer.json among it."""
    fp32: ModelProto


def build(manifest: Manifest, data: Path, *, quick: bool = True, say: BuildProgress) -> Record:
    """Build a model and put it in force under `data`. Raises SetupError, and then nothing has changed."""
    with workshop(data, say) as folder:
        bench = prepare(manifest, data, folder, say)
        return _quick(bench, data, say)


def prepare(manifest: Manifest, data: Path, folder: Path, say: BuildProgress) -> Bench:
    """Fetch what the manifest's source lists and make the fp32 graph of it."""
    if manifest.source is None:
        raise SetupError(f"model {manifest.name!r} has no [source]: there is nothing to build")
    if changed := changed_file(manifest):  # what was fetched before would be built again, and nobody would notice
        raise SetupError(changed)
    refuse_optional(manifest)
    files = folder / "files"
    fetch(manifest.source, data, files, say)
    with say.step(f"make the fp32 graph of {manifest.name}"):
        return Bench(manifest, folder, files, builder_of(manifest).make(manifest, files))


def make(bench: Bench, precision: Precision, say: BuildProgress) -> tuple[Artifact, Path]:
    """One candidate: made, written, loaded once in a child. Gives the artifact and the folder of exactly its files."""
    made = bench.folder / precision
    made.mkdir()
    graph = made / GRAPH_NAME
    with say.step(f"make {precision}"):
        graph.write_bytes(to_bytes(quantize(bench.fp32, precision)))
    assets = []
    for name in asset_names(bench.manifest):
        (made / name).write_bytes((bench.files / name).read_bytes())
        assets.append(made / name)
    with say.step(f"load {precision} in a child process"):
        prove(graph, bench.manifest, bench.files)
    return describe(bench.manifest, precision, graph, assets), made


def asset_names(manifest: Manifest) -> list[str]:
    """The files that `prepare` needs at serving time."""
    return sorted({i.tokenizer.file for i in manifest.seen.inputs if i.tokenizer is not None})


def _quick(bench: Bench, data: Path, say: BuildProgress) -> Record:
    manifest = bench.manifest
    rows = samples(manifest, bench.files, QUICK_ROWS)
    artifact, made = make(bench, manifest.precisions[0], say)
    with say.step(f"check {artifact.precision} on {len(rows)} rows"):
        figures = _quick_figures(bench, made / GRAPH_NAME, rows)
    if failed := reasons(manifest, figures):
        raise SetupError(
            f"model {manifest.name!r}: {artifact.precision} does not pass its gates ({'; '.join(failed)}); "
            f"measure the others with: foreseen models build {manifest.name} --full --data {data}"
        )
    record = Record(artifact, row_independent=not invariance_reasons(manifest, figures))
    publish(data, artifact, made)
    write_record(data, record)
    return record


def _quick_figures(bench: Bench, graph: Path, rows: list[Row]) -> Figures:
    candidate = GraphSession(graph, bench.manifest.model, bench.manifest.precisions[0])
    fp32 = GraphSession(to_bytes(bench.fp32), bench.manifest.model, "fp32")
    reference = check.vectors(fp32.alone(rows), fp32.signature)
    alone = candidate.alone(rows)
    cosine = check.cosines(reference, check.vectors(alone, candidate.signature))
    figures = Figures(float(cosine.mean()), float(cosine.min()))
    if runs_alone(bench.manifest):
        return figures
    changed = check.invariance(candidate, rows, alone, heads.head_of(bench.manifest, reference))
    lengths = tuple(exact.changed(candidate, bench.manifest, rows))
    return msgspec.structs.replace(
        figures, flips=changed.flips, max_difference=changed.max_difference, changed_lengths=lengths
    )


def builder_of(manifest: Manifest) -> ModuleType:
    """The module of `foreseen.models.graphs` that makes the fp32 graph: it has `make(manifest, folder)`.

    A builder that trains also has `truth()`: rows that it held back and their labels.
    """
    name = manifest.source.builder if manifest.source else ""
    if name not in BUILDERS:
        raise SetupError(f"model {manifest.name!r}: no builder called {name!r}; there are {', '.join(BUILDERS)}")
    return importlib.import_module(f"foreseen.models.graphs.{BUILDERS[name]}")
