"""`models build|list|report|add|export|import|compare|handover`: the command line of the offline side.

Errors of the operator are raised as a SetupError of one line; `foreseen.cli` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from foreseen.errors import SetupError
from foreseen.models import progress
from foreseen.models.change_commands import compare, handover
from foreseen.models.measure.labelled import Files
from foreseen.models.report import tables
from foreseen.modelspec import manifest as manifests
from foreseen.modelspec.artifact import Record, read_record, read_serving
from foreseen.modelspec.manifest import Manifest
from foreseen.settings import Common

app = App(name="models", help="Build, measure and manage models.")

Train = Annotated[Path | None, Parameter(help="CSV (text, label; .gz, .xz) on which a logistic head is fitted.")]
Test = Annotated[Path | None, Parameter(help="CSV (text, label) on which agreement and flips are measured.")]
Json = Annotated[bool, Parameter(help="Print only JSON.", negative="")]
Provider = Annotated[
    Literal["cpu", "cuda"], Parameter(help="Execution provider of the measurements: use the one that will serve.")
]
DEFAULTS = Common()
DIGEST_DIGITS = 12


@app.command
def build(
    name: str,
    *,
    full: Annotated[
        bool, Parameter(help="Make and measure every candidate precision. Default: only the first.", negative="")
    ] = False,
    candidate: Annotated[
        bool, Parameter(help="Build without putting it in force, for `compare` and `handover`.", negative="")
    ] = False,
    train: Train = None,
    test: Test = None,
    provider: Provider = "cpu",
    common: Common = DEFAULTS,
) -> None:
    """Build a model and put it in force; report whether it has changed.

    Parameters
    ----------
    name
        The model: the name of its manifest's folder.
    """
    files = _files(train, test)
    _measure_on(provider)
    manifest = manifests.find(name, common.model_folders)
    before = _record(common.data, manifest)
    if candidate:
        if full or files is not None:
            raise SetupError("--candidate builds the manifest's first precision; omit --full, --train and --test")
        _build_candidate(manifest, common)
        return
    with progress.shown(common.log_format) as say:
        if not full and files is None:
            from foreseen.models.build.build import build as build_quick

            record = build_quick(manifest, common.data, say=say)
        else:
            from foreseen.models.report.report import build_full

            record, report = build_full(manifest, common.data, say, files)
    out = Console()
    if full or files is not None:
        tables.show_report(out, report, record.artifact.precision)
    tables.show_build(out, record, before)


def _build_candidate(manifest: Manifest, common: Common) -> None:
    from foreseen.models.build.build import build_candidate

    with progress.shown(common.log_format) as say:
        artifact = build_candidate(manifest, common.data, say).artifact
    digest = artifact.digest[:DIGEST_DIGITS]
    print(f"{manifest.name}:{artifact.precision} {digest} is built; what is in force stays")
    print(f"change to it with: foreseen models handover {manifest.name} --to {digest}")


@app.command(name="list")
def list_(*, json: Json = False, common: Common = DEFAULTS) -> None:
    """List the models with a manifest, and what is built."""
    known = [manifests.find(name, common.model_folders) for name in manifests.names(common.model_folders)]
    built = [(one, _record(common.data, one), read_serving(common.data, one.name)) for one in known]
    if json:
        _print_json([tables.listed(*one) for one in built])
    else:
        tables.show_models(Console(), built)


@app.command
def report(
    name: str,
    *,
    json: Json = False,
    train: Train = None,
    test: Test = None,
    provider: Provider = "cpu",
    common: Common = DEFAULTS,
) -> None:
    """Show the measurements of a built model, and make missing ones now. The artifact in force stays.

    Parameters
    ----------
    name
        The model: the name of its manifest's folder.
    """
    from foreseen.models.report.report import measured, path_of, public

    files = _files(train, test)
    _measure_on(provider)
    manifest = manifests.find(name, common.model_folders)
    record = read_record(common.data, name)
    with progress.shown(common.log_format) as say:
        found = measured(manifest, common.data, say, files)
    if json:
        _print_json(public(found, record.artifact.precision))
        return
    out = Console()
    tables.show_report(out, found, record.artifact.precision)
    out.print(f"plot: {path_of(common.data, name, files).with_suffix('.svg')}", soft_wrap=True, highlight=False)


@app.command
def add(
    file: str,
    *,
    name: Annotated[str | None, Parameter(help="Name of the model; default: from the file or folder.")] = None,
    reference: Annotated[
        Path | None, Parameter(help="An .npz file of inputs and known outputs that the graph must reproduce.")
    ] = None,
    pair: Annotated[
        bool | None,
        Parameter(help="Whether a classifier scores pairs (query, document). Default: decided by its folder."),
    ] = None,
    replace: Annotated[
        bool,
        Parameter(
            help="Replace the model of that name. If inputs and outputs are equal, only the sha256 in its model.toml "
            "changes. For a model folder the old file is kept as model.toml.old.",
            negative="",
        ),
    ] = False,
    dim: Annotated[
        tuple[str, ...],
        Parameter(help="NAME=SIZE[,SIZE]: sizes of a dimension, if experiments find none.", negative=""),
    ] = (),
    values: Annotated[
        tuple[str, ...],
        Parameter(help="NAME=LOW,HIGH: range of an input's numbers, if experiments find none.", negative=""),
    ] = (),
    tokenizer: Annotated[
        Path | None, Parameter(help="The model's tokenizer.json: clients then send text instead of ids.")
    ] = None,
    common: Common = DEFAULTS,
) -> None:
    """Add a model of your own: write a commented model.toml into --models and probe row independence.

    Parameters
    ----------
    file
        An ONNX file, or a Hugging Face folder (config.json, tokenizer.json, safetensors), also as a wheel, zip or URL.
    """
    from foreseen.models.add import add as add_file
    from foreseen.models.folder.add import add as add_folder
    from foreseen.models.folder.locate import is_folder

    if common.models is None:
        raise SetupError("give the folder of your models: --models DIR (or FORESEEN_MODELS), and the same for `up`")
    with progress.shown(common.log_format) as say:
        if is_folder(file):
            if dim or values or tokenizer is not None:
                raise SetupError("--dim, --values and --tokenizer are for ONNX files, not for model folders")
            path = add_folder(file, name, common.models, common.data, say, reference, pair, replace=replace)
        elif reference is not None or pair is not None:
            raise SetupError("--reference and --pair are for model folders, not for ONNX files")
        else:
            one = Path(file)
            path = add_file(one, name, common.models, common.data, say, dim, values, tokenizer, replace=replace)
    print(f"{path}\nbuild it with: foreseen models build {path.parent.name} --models {common.models}")


@app.command
def export(name: str, file: Path, *, common: Common = DEFAULTS) -> None:
    """Write a built model with its report into one tar file, for other machines.

    Parameters
    ----------
    name
        The model.
    file
        The tar file to write.
    """
    from foreseen.models.build import carry

    tables.show_choice(Console(), carry.export(common.data, name, file))


@app.command(name="import")
def import_(name: str, file: Path, *, common: Common = DEFAULTS) -> None:
    """Put a model in force that `models export` wrote on another machine.

    Parameters
    ----------
    name
        The model.
    file
        The tar file.
    """
    from foreseen.models.build import carry

    manifest = manifests.find(name, common.model_folders)
    with progress.shown(common.log_format) as say:
        record = carry.import_(common.data, manifest, file, say)
    tables.show_choice(Console(), record)


app.command(compare)
app.command(handover)


def _measure_on(provider: Literal["cpu", "cuda"]) -> None:
    if provider != "cpu":
        from foreseen.models.measure.graph_run import measure_on

        measure_on(provider)


def _files(train: Path | None, test: Path | None) -> Files | None:
    if (train is None) != (test is None):
        raise SetupError("--train and --test go together: the head is fitted on one and measured on the other")
    for path in (train, test):
        if path is not None and not path.is_file():
            raise SetupError(f"{path}: there is no such file")
    return None if train is None or test is None else Files(train, test)


def _record(data: Path, manifest: Manifest) -> Record | None:
    try:
        return read_record(data, manifest.name)
    except SetupError:
        return None


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode())


if __name__ == "__main__":
    from cyclopts.config import Env

    from foreseen.command_line import Units

    app.config = (Env("FORESEEN_", command=False), Units())
    try:
        app()
    except SetupError as error:
        raise SystemExit(f"error: {error}") from None
