"""`foreseen models add FOLDER`: a Hugging Face model → its files with a short model.toml, built once and probed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from foreseen.errors import SetupError
from foreseen.models.build.build import write_fp32
from foreseen.models.build.child import prove
from foreseen.models.build.publish import workshop
from foreseen.models.folder.describe import FOLDER, TOKENS, Described, describe, read_by_build
from foreseen.models.folder.locate import name_of, opened
from foreseen.models.folder.text import text_of
from foreseen.models.graphs import onnx_write
from foreseen.models.inspect.probe import probe
from foreseen.models.measure import reference
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import samples
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.manifest import Manifest, is_name, load
from foreseen.modelspec.manifest.hints import Samples
from foreseen.types import Row

PROBED_ROWS = 32


def add(
    source: str,
    name: str | None,
    folder: Path,
    data: Path,
    say: BuildProgress,
    known: Path | None = None,
    pair: bool | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write `folder/<name>/model.toml` with the model's files beside it. `known` is a reference.npz.

    Raises SetupError naming what cannot be built or differs, and then nothing has changed.
    """
    name = name or name_of(source)
    place = folder / name
    if not is_name(name):
        raise SetupError(f"--name {name!r}: letters, digits, '.', '_' and '-' only")
    if place.exists() and not replace:
        raise SetupError(f"{place}: exists already; give --replace, or another --name")
    with workshop(data, say) as shop:
        found = opened(source, shop, say)
        described = describe(found, name, pair)
        made = shop / name
        made.mkdir()
        copied = {path: found / path for path in read_by_build(found, described.manifest)}
        if known is not None:
            copied[reference.NAME] = known
        described = msgspec.structs.replace(described, files=_copied(copied, made / FOLDER, say))
        text = _proved(described, made / FOLDER, shop / "fp32.onnx", say)
        (made / "model.toml").write_text(text, "utf-8")
        load(made / "model.toml")  # what was written must be readable
        folder.mkdir(parents=True, exist_ok=True)
        if place.exists():
            _replace(place, made)
        else:
            shutil.move(made, place)
    return place / "model.toml"


def _replace(place: Path, made: Path) -> None:
    """Replace a model's folder. The old model.toml is kept as model.toml.old."""
    toml, beside = place / "model.toml", place / ".new"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.move(made, beside)  # it may come from another file system, where a rename is a copy
    if toml.is_file():
        shutil.copyfile(toml, toml.with_suffix(".toml.old"))
    shutil.rmtree(place / FOLDER, ignore_errors=True)
    (beside / FOLDER).rename(place / FOLDER)
    (beside / toml.name).replace(toml)
    beside.rmdir()


def _copied(copied: dict[str, Path], target: Path, say: BuildProgress) -> dict[str, str]:
    """Copy files to where the build finds them. Gives every file's sha256."""
    target.mkdir()
    for name, path in copied.items():
        with say.step(f"copy {name}"):
            (target / name).parent.mkdir(exist_ok=True)
            try:
                shutil.copyfile(path, target / name)
            except OSError as error:
                raise SetupError(f"{path}: {error.strerror}") from None
    return {name: _sha256(target / name) for name in copied}


def _proved(described: Described, files: Path, graph: Path, say: BuildProgress) -> str:
    """Build the fp32 graph, run it, hold it against the reference and probe it. Gives model.toml's text."""
    manifest = described.manifest
    write_fp32(manifest, files, graph, say)
    with say.step("load it in a child process"):
        prove(graph, manifest, files)
    sessions = [GraphSession(graph, manifest.model, "fp32") for _ in range(2)]
    if (files / reference.NAME).is_file():
        with say.step("compare with the reference"):
            reference.compare(sessions[0], manifest, files, files / reference.NAME)
    with say.step("probe whether rows depend on their batch-mates"):
        model = onnx.load(graph, load_external_data=False)
        rows = samples(manifest, files, PROBED_ROWS)
        found = probe(sessions, msgspec.structs.replace(manifest, samples=_hints(manifest, rows)), rows, model)
    if not found.repeatable or found.mates == "real":
        raise SetupError(f"{manifest.name}: a row's answer depends on its batch-mates or changes from run to run")
    large = onnx_write.data_of(graph).exists()
    return text_of(described, found, "int8-rowwise" if large else "fp32")


def _hints(manifest: Manifest, rows: Sequence[Row]) -> Samples:
    """Sizes and ids for generated rows, within the tokenizer's vocabulary and the graph's tables."""
    columns = dict(zip(manifest.model.keyed, zip(*(row.tensors for row in rows), strict=True), strict=True))
    values = {
        spec.name: (float(min(ids.min() for ids in column)), float(1 + max(ids.max() for ids in column)))
        for spec, column in columns.items()
    }
    return Samples(sizes={TOKENS: tuple(len(ids) for ids in next(iter(columns.values())))}, values=values)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
