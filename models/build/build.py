"""A manifest → an artifact in force: fetch → graph → quantize → load → check → publish → record.

The quick build, for which the first start waits, makes the manifest's first precision only and checks it on a few dozen
texts. The full build (`foreseen.models.report.report`) makes and measures every candidate on this machine.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import onnx
from msgspec import Struct
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.models.build.child import find, prove
from foreseen.models.build.fetch import fetch
from foreseen.models.build.publish import GRAPH_NAME, describe, publish, workshop
from foreseen.models.graphs import onnx_write
from foreseen.models.measure import check, exact, heads, reference, shaping
from foreseen.models.measure.gate import Figures, invariance_reasons, reasons, runs_alone
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import samples
from foreseen.models.progress import BuildProgress
from foreseen.models.quantize import quantize
from foreseen.modelspec.artifact import Artifact, Record, keep_record, refuse_optional, write_record
from foreseen.modelspec.manifest import Manifest, Precision
from foreseen.modelspec.manifest.hints import Samples
from foreseen.modelspec.manifest.source import changed_file
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.modelspec.shapes import Shapes
from foreseen.types import Row

QUICK_ROWS = 48
REPEATED_ROWS = 16
TOO_LARGE = 'it is larger than the 2.1 GB of an ONNX file; take precisions = ["int8-rowwise"]'
BUILDERS = {
    "bert": "bert",
    "mpnet": "mpnet",
    "fingerprint": "fingerprint",
    "digits": "digits",
    "onnx": "onnx_file",
    "folder": "hf.folder",
}
"""`source.builder` → the module of `foreseen.models.graphs` that makes the graph."""


class Bench(Struct, frozen=True):
    """A fetched model: its fp32 graph and the files around it, in a folder that lasts as long as the build."""

    manifest: Manifest
    folder: Path
    files: Path
    """What was fetched, tokenizer.json among it."""
    graph: Path
    """The fp32 graph, in a file: a session maps it, and no step holds it in memory longer than it needs it."""

    @property
    def fp32(self) -> ModelProto:
        """The fp32 graph, read again."""
        return onnx.load(self.graph)


def build(manifest: Manifest, data: Path, *, quick: bool = True, say: BuildProgress) -> Record:
    """Build a model and put it in force under `data`. Raises SetupError, and then nothing has changed."""
    record = build_candidate(manifest, data, say)
    write_record(data, record)
    return record


def build_candidate(manifest: Manifest, data: Path, say: BuildProgress, precision: Precision | None = None) -> Record:
    """Build an artifact beside the one in force; by default in the manifest's first precision. Raises SetupError."""
    with workshop(data, say) as folder:
        return _quick(prepare(manifest, data, folder, say), data, say, precision or manifest.precisions[0])


def prepare(manifest: Manifest, data: Path, folder: Path, say: BuildProgress) -> Bench:
    """Fetch what the manifest's source lists and make the fp32 graph of it."""
    if manifest.source is None:
        raise SetupError(f"model {manifest.name!r} has no [source]: there is nothing to build")
    if changed := changed_file(manifest.source, manifest.name):
        raise SetupError(changed)  # otherwise the build would silently use the files fetched before
    refuse_optional(manifest)
    files = folder / "files"
    fetch(manifest.source, data, files, say)
    graph = folder / "fp32.onnx"
    write_fp32(manifest, files, graph, say)
    if _needs_hints(manifest):
        with say.step("find inputs that it takes"):
            manifest = msgspec.structs.replace(manifest, samples=find(graph, manifest, files))
    if (files / reference.NAME).is_file():
        with say.step("compare with the reference"):
            reference.compare(GraphSession(graph, manifest.model, "fp32"), manifest, files, files / reference.NAME)
    return Bench(manifest, folder, files, graph)


def _needs_hints(manifest: Manifest) -> bool:
    """Whether the manifest of an added graph has no hints about the numbers or texts that it takes."""
    own = manifest.source is not None and manifest.source.builder == "onnx" and manifest.samples == Samples()
    prepared = {i.tokenizer.ids for i in manifest.seen.inputs if i.tokenizer} | {
        i.image.to for i in manifest.seen.inputs if i.image
    }
    return own and any(spec.name not in prepared for spec in manifest.model.keyed)


def write_fp32(manifest: Manifest, files: Path, graph: Path, say: BuildProgress) -> None:
    """Make the fp32 graph and write it into a file. Raises SetupError."""
    builder = builder_of(manifest)
    count = getattr(builder, "parts", None)
    with say.step(f"make the fp32 graph of {manifest.name}", count and count(files)) as advance:
        model = builder.make(manifest, files) if count is None else builder.make(manifest, files, advance)
        write = onnx_write.write_apart if onnx_write.is_large(model) else onnx_write.write
        write(model, graph)


def make(bench: Bench, precision: Precision, say: BuildProgress) -> tuple[Artifact, Path]:
    """One candidate: made, written, loaded once in a child. Gives the artifact and the folder of exactly its files."""
    made = bench.folder / precision
    made.mkdir()
    graph = made / GRAPH_NAME
    with say.step(f"make {precision}"):
        if precision == "fp32" and onnx_write.data_of(bench.graph).exists():
            raise SetupError(f"fp32 of {bench.manifest.name}: {TOO_LARGE}")
        if precision == "fp32":
            shutil.copyfile(bench.graph, graph)
        else:
            onnx_write.write(quantize(bench.fp32, precision), graph)
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


def _quick(bench: Bench, data: Path, say: BuildProgress, precision: Precision) -> Record:
    manifest = bench.manifest
    rows = samples(manifest, bench.files, QUICK_ROWS)
    artifact, made = make(bench, precision, say)
    with say.step(f"check {artifact.precision} on {len(rows)} rows"):
        figures, shapes = _quick_figures(bench, made / GRAPH_NAME, rows, precision)
    if failed := reasons(manifest, figures):
        raise SetupError(
            f"model {manifest.name!r}: {artifact.precision} does not pass its gates ({'; '.join(failed)}); "
            f"measure the others with: foreseen models build {manifest.name} --full --data {data}"
        )
    record = Record(artifact, row_independent=not invariance_reasons(manifest, figures), shapes=shapes)
    publish(data, artifact, made)
    keep_record(data, record)
    return record


def _quick_figures(bench: Bench, graph: Path, rows: list[Row], precision: Precision) -> tuple[Figures, Shapes]:
    loaded = GraphSession(graph, bench.manifest.model, precision)
    shapes, _ = shaping.decide(loaded, bench.manifest, rows)
    candidate = loaded.in_shapes(bench.manifest, shapes)
    fp32 = loaded if precision == "fp32" else GraphSession(bench.graph, bench.manifest.model, "fp32")
    known = check.vectors(fp32.alone(rows), fp32.signature)
    alone = candidate.alone(rows)
    _check_repeatable(bench.manifest, candidate, rows, alone)
    cosine = check.cosines(known, check.vectors(alone, candidate.signature))
    figures = Figures(float(cosine.mean()), float(cosine.min()))
    if runs_alone(bench.manifest) or shapes.kind == "single":
        return figures, shapes
    changed = check.invariance(candidate, rows, alone, heads.head_of(bench.manifest, known))
    lengths = tuple(exact.changed(candidate, bench.manifest, rows))
    figures = msgspec.structs.replace(
        figures, flips=changed.flips, max_difference=changed.max_difference, changed_lengths=lengths
    )
    return figures, shapes


def _check_repeatable(manifest: Manifest, session: GraphSession, rows: list[Row], alone: list[RowOutputs]) -> None:
    """Raises SetupError where a cached model answers the same row twice in two ways."""
    again = session.alone(rows[:REPEATED_ROWS])
    if manifest.cacheable and any(check.difference(a, b) for a, b in zip(alone, again, strict=False)):
        raise SetupError(
            f"model {manifest.name!r}: two runs of one row differ, so its answers must not be cached: "
            "set cacheable = false"
        )


def builder_of(manifest: Manifest) -> ModuleType:
    """The module of `foreseen.models.graphs` that makes the fp32 graph: it has `make(manifest, folder)`.

    A builder that trains also has `truth()`: rows that it held back and their labels. One that reads large weights has
    `parts(folder)`, how many tensors there are, and `make` then takes what to call after each.
    """
    name = manifest.source.builder if manifest.source else ""
    if name not in BUILDERS:
        raise SetupError(f"model {manifest.name!r}: no builder called {name!r}; there are {', '.join(BUILDERS)}")
    return importlib.import_module(f"foreseen.models.graphs.{BUILDERS[name]}")
