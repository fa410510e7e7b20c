"""Settings → the plan of a warming: the manifest, the model digest in force, the columns; or why it cannot be.

The digest is what the model's process says. When it is down, it is what it last said, as long as the artifact that it
served is still in force; `--digest` says it where neither is known, since only the machine that serves can work it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from foreseen.errors import ModelUnavailable, SetupError, StateUnavailable
from foreseen.modelspec.artifact import preparation_digest, read_record, read_serving
from foreseen.modelspec.manifest import Manifest, find
from foreseen.paths import model_socket, state_socket
from foreseen.settings import WarmSettings
from foreseen.stores.redis_urls import access_of, master_at
from foreseen.stores.state import generation_of, read_generations
from foreseen.warm.plan import Plan
from foreseen.warm.read.columns import columns_for, fixed
from foreseen.warm.read.files import DIGEST_COLUMN, File
from foreseen.warm.run.client import Asker
from foreseen.warm.write.importer import MADE_AT_COLUMN, OUTPUT_PREFIX, SECONDS_COLUMN


class Facts(Struct, frozen=True):
    """What is known of the model in force. `running` is whether its process said so just now."""

    digest: str
    preparation: str
    row_independent: bool
    running: bool


def plan_of(settings: WarmSettings) -> tuple[Plan, Facts]:
    """Raises SetupError where the model may not be warmed or is not known."""
    manifest = find(settings.model, settings.model_folders)
    if not manifest.cacheable:
        raise SetupError(f"model {manifest.name!r} is declared not cacheable: there is nothing to warm")
    if manifest.rows == "together":
        raise SetupError(f'model {manifest.name!r} has rows = "together": an entry is a request; warm it with --url')
    facts = _facts(manifest, settings)
    if not facts.row_independent:
        raise SetupError(f"model {manifest.name!r} is not cached by the row, its rows depend on each other")
    _check_preparation(manifest, settings, facts)
    importing = bool(settings.outputs)
    if not importing and not facts.running:
        raise SetupError(
            f"model {manifest.name!r} does not run under {settings.data}; start it (foreseen up), or give --url, or "
            "import predictions with --outputs"
        )
    plan = Plan(
        manifest=manifest,
        digest=facts.digest,
        data=settings.data,
        secret_file=settings.secret_file,
        redis=None if settings.redis is None else master_at(settings.redis, access_of(settings)),
        generation=_generation(settings, facts.digest),
        model=settings.address,
        mode="import" if importing else "compute",
        inputs=mapped(settings.map, [i.name for i in manifest.seen.inputs], "--map", "input"),
        outputs=outputs_of(settings, manifest),
        batch_ms=settings.batch_ms,
        rows_per_second=settings.rows_per_second,
        ttl_seconds=manifest.freshness.hard_seconds or settings.ttl_seconds,
        value_bytes=settings.far_value_bytes,
        patience_seconds=settings.patience_seconds,
    )
    return plan, facts


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
        free = {**{s.name: s.name for s in seen}, **plan.inputs}
        outputs = {**{s.name: s.name for s in model}, **plan.outputs} if plan.mode == "import" else {}
        return {**free, **outputs, MADE_AT_COLUMN: "", SECONDS_COLUMN: "", DIGEST_COLUMN: ""}
    wanted: dict[str, str] = {}
    try:
        for spec in seen:
            optional = spec.ignore or spec.name in masks
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


def check_digests(files: Sequence[File], plan: Plan, given: str | None) -> None:
    """An import is only right for the model that computed it. Raises SetupError for any file that does not say so."""
    for file in files:
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


def _facts(manifest: Manifest, settings: WarmSettings) -> Facts:
    address = settings.address or f"unix:{model_socket(settings.data, manifest.name)}"
    asker = Asker(address, manifest.name, 0.0)
    try:
        told: Mapping[str, object] = asker.metadata().get("parameters", {})
        independent = bool(told.get("row_independent", True))
        return Facts(str(told["digest"]), str(told.get("preparation", "")), independent, running=True)
    except (ModelUnavailable, KeyError):
        pass
    finally:
        asker.close()
    last = read_serving(settings.data, manifest.name)
    if last is not None:
        return Facts(last.digest, last.preparation, last.row_independent, running=False)
    if settings.outputs and settings.digest is not None:
        return Facts(settings.digest, "", row_independent=True, running=False)
    raise SetupError(
        f"model {manifest.name!r} has never run under {settings.data}, so its digest is not known; start it once "
        "(foreseen up), or give --url, or --digest (GET /v2/models/NAME of the model process shows it)"
    )


def _check_preparation(manifest: Manifest, settings: WarmSettings, facts: Facts) -> None:
    """Keys made by another model.toml or tokenizer than the process's would never be asked for."""
    needs = any(spec.tokenizer for spec in manifest.seen.inputs)
    assets = read_record(settings.data, manifest.name).artifact.assets if needs else ()
    if facts.preparation and facts.preparation != preparation_digest(manifest, assets):
        raise SetupError(
            f"model {manifest.name!r} runs with another preparation (model.toml or tokenizer) than the one here; "
            "rebuild or restart it, or give its --models"
        )


def state_of(settings: WarmSettings) -> str | None:
    """The address of the state store, where there is one."""
    own = state_socket(settings.data)
    if settings.state == "none" or (settings.state is None and not own.exists()):
        return None
    return settings.state or f"unix://{own}"


def _generation(settings: WarmSettings, digest: str) -> int:
    """The generation that purges have left. Entries of another one would never be asked for, hence no guessing."""
    state = state_of(settings)
    if state is None:
        return 0
    try:
        return generation_of(read_generations(state, access_of(settings)), settings.model, digest)
    except StateUnavailable:
        raise SetupError(
            "the state store does not answer, so what was purged is not known; start it (foreseen up), or give --state"
        ) from None


def outputs_of(settings: WarmSettings, manifest: Manifest) -> dict[str, str]:
    """Column → output, where they may differ. Raises SetupError."""
    if settings.outputs == ("all",):
        return {}
    names = [o.name for o in manifest.model.outputs]
    return mapped([one if "=" in one else f"{one}={one}" for one in settings.outputs], names, "--outputs", "output")
