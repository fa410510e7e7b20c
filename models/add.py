"""A user's ONNX file → a folder with the file and a commented model.toml; experiments decide how its rows may run.

The signature comes from the graph, corrected by the outputs of a few runs. What a graph does not contain (tokenizer,
names of labels) is left as a comment to fill in, or given by `--tokenizer`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.models.build.child import find, one_line
from foreseen.models.build.publish import workshop
from foreseen.models.graphs import onnx_file
from foreseen.models.inspect import signature as signatures
from foreseen.models.inspect.manifest_text import text_of
from foreseen.models.inspect.probe import Found, ProbeVerdict, probe
from foreseen.models.inspect.search import given_sizes, given_values
from foreseen.models.inspect.signature import Draft, GraphRun
from foreseen.models.inspect.text_inputs import Text, clients_of, taking_text, with_mask
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import equal_samples, samples
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.manifest import Manifest, load
from foreseen.modelspec.manifest.hints import Samples
from foreseen.modelspec.manifest.policy import Batching
from foreseen.modelspec.rows import row_count
from foreseen.types import Row

PROBED_ROWS = 32
SEEN_COUNTS = (1, 2, 3)
SEEN_SEEDS = 3


def add(
    file: Path,
    name: str | None,
    folder: Path,
    data: Path,
    say: BuildProgress,
    dims: Sequence[str] = (),
    values: Sequence[str] = (),
    tokenizer: Path | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write `folder/<name>/model.toml` and a copy of the file beside it. Raises SetupError naming what does not fit."""
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem).strip("-").lower()
    place = folder / name
    if place.exists() and not replace:
        raise SetupError(f"{place}: exists already; give --replace, or another --name")
    model = onnx_file.read(file)
    draft = signatures.draft_of(model, file.name)
    with workshop(data, say) as shop:
        made = shop / name
        made.mkdir()
        graph = made / "model.onnx"
        onnx_file.copy(file, graph)
        text = None if tokenizer is None else taking_text(model, tokenizer, made)
        found = examine(name, model, graph, draft, _hints(dims, values), say, text)
        (made / "model.toml").write_text(text_of(found, graph, () if text is None else (text.tokenizer.file,)), "utf-8")
        load(made / "model.toml")  # what was written must be readable
        folder.mkdir(parents=True, exist_ok=True)
        if place.exists():
            _replace(place, made)
        else:
            shutil.move(made, place)
    return place / "model.toml"


def _replace(place: Path, made: Path) -> None:
    """Replace a model's file. Edits of model.toml are kept where the signature is the same;
    else the old one is kept as model.toml.old."""
    toml, new = place / "model.toml", made / "model.toml"
    if toml.is_file():
        old, fresh = load(toml), load(new)
        if old.source is not None and old.source.sha256 and fresh.source is not None and _fits(old, fresh):
            new.write_text(toml.read_text("utf-8").replace(old.source.sha256, fresh.source.sha256 or ""), "utf-8")
        else:
            shutil.copyfile(toml, toml.with_suffix(".toml.old"))
    for path in sorted(made.iterdir(), key=lambda path: path == new):  # model.toml last
        beside = place / f".{path.name}.new"
        shutil.move(path, beside)  # it may come from another file system, where a rename is a copy
        beside.replace(place / path.name)


def _fits(old: Manifest, new: Manifest) -> bool:
    """Whether the old manifest can be kept: the new graph has the same signature and needs the same files."""
    files = [set(one.source.files) if one.source else set() for one in (old, new)]
    inputs, outputs = (
        [{(spec.name, spec.datatype, len(spec.shape)) for spec in specs} for specs in pair]
        for pair in ((old.model.inputs, new.model.inputs), (old.model.outputs, new.model.outputs))
    )
    return inputs[0] == inputs[1] and outputs[0] <= outputs[1] and files[1] <= files[0]


def examine(
    name: str,
    model: ModelProto,
    graph: Path,
    draft: Draft,
    hints: Samples,
    say: BuildProgress,
    text: Text | None = None,
) -> Found:
    """Run the graph to find out which requests it takes. Raises SetupError where it cannot be run."""
    manifest = _manifest(name, draft, hints)
    with say.step("load it in a child process and find inputs that it takes"):
        manifest = msgspec.structs.replace(manifest, samples=find(graph, manifest, graph.parent))
    sessions = [GraphSession(graph, manifest.model, "fp32") for _ in range(2)]
    with say.step("see what it gives"):
        manifest, draft = _settled(manifest, draft, model, sessions[0])
    if manifest.rows == "each":
        manifest = with_mask(manifest) if text is None else text.of(manifest)
    elif text is not None:
        raise SetupError(f"--tokenizer: the graph takes whole requests only ({draft.why})")
    sessions = [session.of(manifest.model) for session in sessions]
    with say.step("probe what rows do to each other, and what padding does"):
        rows = samples(manifest, graph.parent, PROBED_ROWS)
        verdict = probe(sessions, manifest, rows, model)
    return Found(clients_of(judged(manifest, verdict), text), verdict, draft.why)


def judged(manifest: Manifest, verdict: ProbeVerdict) -> Manifest:
    """The draft with the settings that the experiments require."""
    if not verdict.repeatable:
        rows = manifest.rows if manifest.batching.single else "together"
        return msgspec.structs.replace(manifest, cacheable=False, rows=rows)
    if verdict.mates == "real":
        return msgspec.structs.replace(manifest, rows="together")
    if verdict.mates != "none" or verdict.padding != "none":
        return msgspec.structs.replace(manifest, batching=msgspec.structs.replace(manifest.batching, single=True))
    return manifest


def _hints(dims: Sequence[str], values: Sequence[str]) -> Samples:
    try:
        return Samples(sizes=given_sizes(dims), values=given_values(values))
    except ValueError as error:
        raise SetupError(str(error)) from None


def _manifest(name: str, draft: Draft, hints: Samples) -> Manifest:
    return Manifest(
        name=name,
        model=draft.signature,
        rows="together" if draft.axis == "whole" else "each",
        batching=Batching(single=draft.axis == "one"),
        samples=hints,
    )


def _settled(manifest: Manifest, draft: Draft, model: ModelProto, session: GraphSession) -> tuple[Manifest, Draft]:
    """The manifest with the outputs that the runs returned. If they have no axis of rows, whole requests are run."""
    axis, why = draft.axis, draft.why
    runs: list[GraphRun] = []
    for count in SEEN_COUNTS if axis == "rows" else SEEN_COUNTS[:1]:
        try:
            runs += _runs(manifest, session, count)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has no common error class
            if count == 1:
                raise SetupError(f"{manifest.name}: does not run: {one_line(error)}") from None
            axis, why = "one", f"a run of {count} rows fails: {one_line(error)}"
            break
    settled = signatures.settled(manifest.model, model, runs, manifest.name)
    if settled is not None and axis == "rows" and not (draft.is_named or _is_one_axis(manifest, session)):
        settled, why = None, "its inputs take different numbers of rows"
    if settled is None:
        why = why if axis == "whole" else why or "an output's first axis is not the rows"
        whole = Draft("whole", signatures.whole(model, manifest.name), draft.is_named, why)
        manifest = _manifest(manifest.name, whole, manifest.samples)
        runs = [*_runs(manifest, session.of(manifest.model), 1)]
        settled = signatures.settled(manifest.model, model, runs, manifest.name)
        assert settled is not None
        return msgspec.structs.replace(manifest, model=settled), whole
    changed = Draft(axis, settled, draft.is_named, why)
    return _manifest(manifest.name, changed, manifest.samples), changed


def _runs(manifest: Manifest, session: GraphSession, count: int) -> Iterator[GraphRun]:
    """Runs of `count` rows, of different sizes from run to run."""
    for seed in range(SEEN_SEEDS):
        rows = equal_samples(manifest, count, seed)
        feeds = session.feeds(rows)
        sizes = _sizes(manifest, rows[0])
        rows_there = count if manifest.model.has_rows else row_count(rows[0].tensors, manifest.model.keyed)
        yield GraphRun(rows_there, sizes, {name: array.shape for name, array in session.outputs(feeds).items()})


def _sizes(manifest: Manifest, row: Row) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec, tensor in zip(manifest.model.keyed, row.tensors, strict=True):
        dims = spec.shape[1:] if manifest.model.has_rows else spec.shape
        sizes |= {dim: size for dim, size in zip(dims, tensor.shape, strict=True) if isinstance(dim, str)}
    return sizes


def _is_one_axis(manifest: Manifest, session: GraphSession) -> bool:
    """Whether inputs refuse different numbers of rows: if not, those are axes of different things."""
    if len(manifest.model.inputs) < 2:
        return True
    feeds = session.feeds(equal_samples(manifest, 3, seed=0))
    for name in feeds:
        fewer = {other: array[:2] if other == name else array for other, array in feeds.items()}
        try:
            session.outputs(fewer)
        except Exception:  # noqa: BLE001, S112 - ONNX Runtime has no common error class; a refusal is the usual answer
            continue
        return False
    return True
