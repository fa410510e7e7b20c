"""Resolves the settings of a run to its plan: the manifest, the model digest in force, the columns.

The model's process reports its digest. While it is down, the digest it reported last counts, if the artifact that it
served is still in force. Otherwise `--digest` has to give it: only the machine that serves the model can compute it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from foreseen.errors import ModelUnavailable, SetupError
from foreseen.modelspec.artifact import preparation_digest, read_record, read_serving
from foreseen.modelspec.manifest import Manifest, find
from foreseen.paths import model_socket, state_socket
from foreseen.settings import WarmSettings
from foreseen.stores.redis_urls import access_of, master_at
from foreseen.tenants.keyring import scope_named
from foreseen.warm.model.client import V2Client
from foreseen.warm.plan import Plan
from foreseen.warm.read.columns import columns_for, fixed, never_fits
from foreseen.warm.read.files import DIGEST_COLUMN, File
from foreseen.warm.write.importer import MADE_AT_COLUMN, OUTPUT_PREFIX, SECONDS_COLUMN


class ResolvedModel(Struct, frozen=True):
    """The model in force. `running` is whether its process answered just now."""

    digest: str
    preparation: str
    row_independent: bool
    running: bool


def plan_of(settings: WarmSettings) -> tuple[Plan, ResolvedModel]:
    """Raises SetupError where the model may not be warmed or is not known."""
    manifest = find(settings.model, settings.model_folders)
    if not manifest.cacheable:
        raise SetupError(f"model {manifest.name!r} is declared not cacheable: there is nothing to warm")
    if manifest.rows == "together":
        raise SetupError(f'model {manifest.name!r} has rows = "together": an entry is a request; warm it with --url')
    facts = _facts(manifest, settings)
    if not facts.row_independent:
        raise SetupError(f"model {manifest.name!r} is not cached per row, because its rows depend on each other")
    _check_preparation(manifest, settings, facts)
    importing = bool(settings.outputs)
    if not importing and not facts.running:
        raise SetupError(
            f"model {manifest.name!r} does not run under {settings.data}; start it (foreseen up), or give --url, or "
            "import predictions with --outputs"
        )
    plan = Plan(
        manifest=manifest,
        scope=scope_named(settings.tenant, settings.keys_file),
        digest=facts.digest,
        data=settings.data,
        secret_file=settings.secret_file,
        redis=None if settings.redis is None else master_at(settings.redis, access_of(settings)),
        state=settings.state,
        redis_ca_file=settings.redis_ca_file,
        sentinel_user=settings.sentinel_user,
        sentinel_password_file=settings.sentinel_password_file,
        model=settings.address,
        mode="import" if importing else "compute",
        inputs=mapped(settings.map, [i.name for i in manifest.seen.inputs], "--map", "input"),
        outputs=outputs_of(settings, manifest),
        batch_ms=settings.batch_ms,
        rows_per_second=settings.rows_per_second,
        ttl_seconds=manifest.freshness.hard_seconds or settings.ttl_seconds,
        patience_seconds=settings.patience_seconds,
    )
    return plan, facts


def plan_for(model: str, data: Path | str = "data", models: Path | str | None = None) -> Plan:
    """The plan of warming a model that runs under `data`: its manifest from `models` or the packaged ones, its digest
    from its process. Raises SetupError where it may not be warmed or is not known."""
    folder = None if models is None else Path(models)
    return plan_of(WarmSettings(model=model, data=Path(data), models=folder))[0]


def mapped(given: Sequence[str], names: Sequence[str], flag: str, kind: str) -> dict[str, str]:
    """`COLUMN=NAME` flags as a table. Raises SetupError for a name that the model does not have."""
    table = {}
    for one in given:
        column, sign, name = one.rpartition("=")
        if not sign or name not in names:
            raise SetupError(f"{flag} {one}: say COLUMN=NAME with an {kind} of the model: {', '.join(names)}")
        table[column] = name
    return table


def wanted_columns(file: File, plan: Plan) -> dict[str, str]:
    """The columns of a file that are read, and what each is. Raises SetupError where one is missing."""
    seen, model = plan.manifest.seen.inputs, plan.manifest.model.outputs
    masks = {spec.trim for spec in seen if spec.trim}
    have = file.columns
    if have is None:
        own = {MADE_AT_COLUMN: "", SECONDS_COLUMN: "", DIGEST_COLUMN: ""}
        given = {**plan.inputs, **plan.outputs}
        names = [s.name for s in seen] + [s.name for s in model if plan.mode == "import"]
        return {**own, **given, **{name: name for name in names if name not in given.values()}}
    wanted: dict[str, str] = {}
    if file.rows == 0:  # a part without rows may be without columns
        return wanted
    try:
        for spec in seen:
            optional = spec.ignore or spec.optional or spec.name in masks
            if optional and spec.name not in have and spec.name not in plan.inputs.values():
                continue
            wanted |= dict.fromkeys(columns_for(spec, have, plan.inputs), spec.name)
        if plan.mode == "import":
            for output in model:
                columns = columns_for(output, have, plan.outputs, OUTPUT_PREFIX)
                if not fixed(output) and len(columns) > 1:
                    raise SetupError(f"output {output.name!r} differs in size between rows: give it one list column")
                wanted |= dict.fromkeys(columns, output.name)
            wanted |= {name: "" for name in (MADE_AT_COLUMN, SECONDS_COLUMN, DIGEST_COLUMN) if name in have}
    except SetupError as error:
        raise SetupError(f"{file.url}: {error}") from None
    return wanted


def check_types(files: Sequence[File], plan: Plan) -> None:
    """If a column's type can never be the input's, the rows of its file are rejected. If that is so in all files, this
    raises SetupError before they are read."""
    reasons = [_misfit_of(file, plan) for file in files if file.rows != 0]
    if reasons and all(reason is not None for reason in reasons):
        raise SetupError(str(reasons[0]))


def _misfit_of(file: File, plan: Plan) -> str | None:
    if file.schema is None or file.columns is None:
        return None
    specs = [(spec, plan.inputs, "") for spec in plan.manifest.seen.inputs if not spec.ignore]
    if plan.mode == "import":
        specs += [(spec, plan.outputs, OUTPUT_PREFIX) for spec in plan.manifest.model.outputs]  # type: ignore[misc]
    for spec, names, prefix in specs:
        try:
            columns = columns_for(spec, file.columns, names, prefix)
        except SetupError:  # a mask that may be left out
            continue
        for column in columns:
            if column in file.schema.names:
                kind = file.schema.field(column).type
                why = never_fits(kind, spec, column, one_of_many=len(columns) > 1)
                if why is not None:
                    return f"{file.url}: {why}"
    return None


def check_digests(files: Sequence[File], plan: Plan, given: str | None) -> None:
    """Imported outputs must come from the model in force. Raises SetupError for a file without its digest."""
    for file in files:
        if file.rows == 0:
            continue
        if file.digest is None and file.columns is not None and DIGEST_COLUMN in file.columns:
            continue  # held against each row when it is read
        recorded = file.digest or given
        if recorded is None:
            raise SetupError(
                f"{file.url}: records no model digest (column or Parquet metadata foreseen.digest); if it was computed "
                f"by the model in force, say --digest {plan.digest}"
            )
        if recorded != plan.digest:
            raise SetupError(
                f"{file.url}: was computed by model {recorded[:16]}…, in force is {plan.digest[:16]}…; "
                "predict it again with the model in force (foreseen warm without --outputs)"
            )


def _facts(manifest: Manifest, settings: WarmSettings) -> ResolvedModel:
    address = settings.address or f"unix:{model_socket(settings.data, manifest.name)}"
    client = V2Client(address, manifest.name, 0.0)
    try:
        parameters: Mapping[str, object] = client.metadata().get("parameters", {})
        independent = bool(parameters.get("row_independent", True))
        return ResolvedModel(
            str(parameters["digest"]), str(parameters.get("preparation", "")), independent, running=True
        )
    except (ModelUnavailable, KeyError):
        pass
    finally:
        client.close()
    last = read_serving(settings.data, manifest.name)
    if last is not None:
        return ResolvedModel(last.digest, last.preparation, last.row_independent, running=False)
    if settings.outputs and settings.digest is not None:
        return ResolvedModel(settings.digest, "", row_independent=True, running=False)
    raise SetupError(
        f"model {manifest.name!r} has never run under {settings.data}, so its digest is not known; start it once "
        "(foreseen up), or give --url, or --digest (GET /v2/models/NAME of the model process shows it)"
    )


def _check_preparation(manifest: Manifest, settings: WarmSettings, facts: ResolvedModel) -> None:
    """With another model.toml or tokenizer than the process's, no proxy would ever look the keys up."""
    needs = any(spec.tokenizer for spec in manifest.seen.inputs)
    assets = read_record(settings.data, manifest.name).artifact.assets if needs else ()
    if facts.preparation and facts.preparation != preparation_digest(manifest, assets):
        raise SetupError(
            f"model {manifest.name!r} runs with a different preparation (model.toml or tokenizer); "
            "rebuild or restart it, or give its --models"
        )


def state_of(settings: WarmSettings) -> str | None:
    """The address of the state store, where there is one."""
    own = state_socket(settings.data)
    if settings.state == "none" or (settings.state is None and not own.exists()):
        return None
    return settings.state or f"unix://{own}"


def outputs_of(settings: WarmSettings, manifest: Manifest) -> dict[str, str]:
    """Column → output, if their names differ. Raises SetupError."""
    if settings.outputs == ("all",):
        return {}
    names = [o.name for o in manifest.model.outputs]
    return mapped([one if "=" in one else f"{one}={one}" for one in settings.outputs], names, "--outputs", "output")
