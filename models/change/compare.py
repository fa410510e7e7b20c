"""`foreseen models compare`: the rows of files → answers of two sides → a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from msgspec import Struct, structs

from foreseen.compare.comparison import TOLERANCE, Comparison
from foreseen.errors import SetupError
from foreseen.models.change.artifacts import NamedArtifact, NamedServer, artifact_of, named_model, server_of
from foreseen.models.change.candidate import candidate
from foreseen.models.change.side import AskedSide, SideAnswers, artifact_side, server_side
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.manifest import Manifest
from foreseen.settings import Common
from foreseen.types import Key
from foreseen.warm.plan import Plan
from foreseen.warm.read.chunk import Batch
from foreseen.warm.read.files import File, files_of
from foreseen.warm.read.reader import chunks
from foreseen.warm.run.resolve import check_types, mapped, wanted_columns

CHUNK_ROWS = 2048
"""Rows sent to one side, then to the other, before the sides are compared."""


class CompareOptions(Struct, frozen=True, kw_only=True):
    """What may be said about a comparison besides its sides and files."""

    columns: tuple[str, ...] = ()
    """COLUMN=INPUT where they differ."""
    labels: tuple[str, ...] = ()
    """Outputs whose last axis holds classes, in addition to those with labels in the manifest."""
    tolerance: float = TOLERANCE
    min_cosine: float | None = None
    """Rows below it count as changed."""
    rows: int | None = None
    """Maximum number of rows; None: all."""

    def comparison(self, *manifests: Manifest) -> Comparison:
        """An empty one of models with these manifests. Raises SetupError."""
        classes = [name for manifest in manifests for name in labelled(manifest, self.labels)]
        return Comparison(tuple(dict.fromkeys(classes)), self.tolerance, min_cosine=self.min_cosine)


def compare(
    old: str, new: str, files: Sequence[str], options: CompareOptions, common: Common, say: BuildProgress
) -> tuple[Comparison, str, str]:
    """The comparison, and what the two sides are called. Raises SetupError."""
    with ExitStack() as open_sides:
        sides = _sides(old, new, options, common, say, open_sides)
        comparison = options.comparison(*(side.manifest for side in sides))
        with say.step(f"compare {sides[0].label} with {sides[1].label}"):
            for batch in batches(files_of(files), [side.plan for side in sides], options.rows):
                add(comparison, *(side.answers(batch) for side in sides))
        return comparison, sides[0].label, sides[1].label


def add(comparison: Comparison, old: SideAnswers, new: SideAnswers) -> None:
    """Add the rows of a batch by their places. Equal rows count once."""
    seen: set[bytes] = set()
    for before, after in zip(old.keys, new.keys, strict=True):
        if before in seen:
            continue
        seen.add(before)
        known, fresh = old.answers.get(Key(before)), new.answers.get(Key(after))
        if known is None:
            comparison.failed_old += 1
        elif fresh is None:
            comparison.failed_new += 1
        else:
            comparison.add(before, known, fresh, known.seconds, fresh.seconds)


def batches(files: Sequence[File], plans: Sequence[Plan], rows: int | None = None) -> Iterator[Batch]:
    """The files in pieces, with all columns that one of the plans takes. Raises SetupError."""
    for plan in plans:
        check_types(files, plan)
    left = rows
    for file in files:
        wanted = {name: what for plan in plans for name, what in wanted_columns(file, plan).items()}
        with closing(chunks(file, plans[0].manifest, wanted, 0, CHUNK_ROWS)) as pieces:
            for chunk in pieces:
                batch = chunk.batch if left is None else chunk.batch.slice(0, left)
                yield batch
                if left is not None:
                    left -= batch.num_rows
                    if left <= 0:
                        return


def labelled(manifest: Manifest, named: Sequence[str]) -> tuple[str, ...]:
    """The outputs that are classes: those with labels in the manifest, and those that are named. Raises SetupError."""
    outputs = [output.name for output in manifest.seen.outputs]
    if unknown := [name for name in named if name not in outputs]:
        raise SetupError(f"--label-output {unknown[0]}: the model has the outputs {', '.join(outputs)}")
    return (*(output.name for output in manifest.seen.outputs if output.labels), *named)


def _sides(
    old: str, new: str, options: CompareOptions, common: Common, say: BuildProgress, open_sides: ExitStack
) -> list[AskedSide]:
    """Both sides, each with its process where it needs one."""
    folders, data = common.model_folders, common.data
    servers = [server_of(text) for text in (old, new)]
    own = [None if server else named_model(text, folders) for text, server in zip((old, new), servers, strict=True)]
    model = next((name for name in (*own, *(one.model for one in servers if one)) if name), None)
    sides: list[AskedSide] = []
    for text, server in zip((old, new), servers, strict=True):
        if server is not None:
            side = _at_server(server, model, data, options)
        else:
            chosen = artifact_of(text, model, data, folders, say)
            model = chosen.manifest.name
            with say.step(f"start {chosen.label}"):
                address = open_sides.enter_context(candidate(chosen, data, common.models))
            side = artifact_side(chosen.manifest, address, chosen.label, data, inputs_of(chosen, options))
        open_sides.callback(side.close)
        sides.append(side)
    return sides


def _at_server(server: NamedServer, model: str | None, data: Path, options: CompareOptions) -> AskedSide:
    name = server.model or model
    if name is None:
        raise SetupError(f"{server.address}: say which of its models: {server.address}/v2/models/NAME")
    server = structs.replace(server, model=name)
    side = server_side(server.address, name, server.label, data, {})
    side.plan.inputs.update(mapped(options.columns, [i.name for i in side.manifest.seen.inputs], "--map", "input"))
    return side


def inputs_of(chosen: NamedArtifact, options: CompareOptions) -> dict[str, str]:
    return mapped(options.columns, [i.name for i in chosen.manifest.seen.inputs], "--map", "input")
