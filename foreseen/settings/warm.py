"""Settings of `foreseen warm`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foreseen.settings.common import StoreSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WarmSettings(StoreSettings):
    """A batch run that fills the cache."""

    model: Annotated[str, Parameter(help="The model whose entries are filled.")]
    url: Annotated[
        str | None,
        Parameter(help="Address of a running proxy to use instead. Then neither secret nor Redis is needed."),
    ] = None
    admin_token_file: Annotated[
        Path | None,
        Parameter(help="Operators' token, for an import through a proxy. Default: DATA/admin-token."),
    ] = None
    key_file: Annotated[
        Path | None, Parameter(help="File with the tenant's key, for a proxy (--url) that requires one.")
    ] = None
    tenant: Annotated[
        str | None, Parameter(help="The tenant whose entries are written; with --url, of an import. Default: public.")
    ] = None
    keys_file: Annotated[
        Path | None, Parameter(help="Keys file with the tenant's scope. Default: a scope of its own.")
    ] = None
    map: Annotated[tuple[str, ...], Parameter(help="COLUMN=INPUT, if the names differ; may be repeated.")] = ()
    outputs: Annotated[
        tuple[str, ...],
        Parameter(help="Import predictions: COLUMN=OUTPUT, or 'all' if the names are equal. No model runs."),
    ] = ()
    digest: Annotated[
        str | None, Parameter(help="Model digest of predictions that do not record which model made them.")
    ] = None
    verify: Annotated[
        str | None, Parameter(help="Share of the rows (1%) that the model computes itself before an import.")
    ] = None
    out: Annotated[Path | None, Parameter(help="Folder for the predictions as Parquet, which can be imported.")] = None
    sql: Annotated[
        str | None, Parameter(help="Database for the predictions: sqlite:///FILE, postgresql+psycopg://HOST/NAME.")
    ] = None
    sql_table: Annotated[str, Parameter(help="Table of that database; created if missing.")] = "predictions"
    rows_per_second: Annotated[float | None, Parameter(help="Maximum rows per second that the model computes.")] = None
    batch_ms: Annotated[
        float, Parameter(help="Compute time of one request; an online miss waits for at most one, in ms.")
    ] = 50.0
    chunk_rows: Annotated[int, Parameter(help="Rows between two checkpoints.")] = 65536
    checkpoint: Annotated[
        Path | None, Parameter(help="Folder of checkpoints and rejected rows. Default: DATA/warm.")
    ] = None
    error_budget: Annotated[str, Parameter(help="Share of the rows (1%) that may fail before the status is 1.")] = "0%"
    ttl_seconds: Annotated[float, Parameter(help="Maximum lifetime of an entry, ± 10 %.")] = 604800.0
    redis: Annotated[
        str | None, Parameter(help="The far tier, one server or behind Sentinels. Default: DATA's own.")
    ] = None
    state: Annotated[
        str | None, Parameter(help="State store of purges; 'none' for none. Default: DATA's own, if it runs.")
    ] = None
    secret_file: Annotated[Path | None, Parameter(help="Root secret of all keys. Default: DATA/secret.")] = None
    address: Annotated[
        str | None, Parameter(help="The model process, unix:/path or http://host:port. Default: DATA's own.")
    ] = None
    patience_seconds: Annotated[
        float, Parameter(help="How long to wait for a model or Redis that is down, full or silent.")
    ] = 60.0
    stand_back: Annotated[
        bool,
        Parameter(help="Compute only while the core is idle (Linux's SCHED_IDLE); imports always run."),
    ] = True
    ray: Annotated[
        bool,
        Parameter(help="Distribute the work with Ray, to the cluster of RAY_ADDRESS or to the cores of this machine."),
    ] = False
    ray_workers: Annotated[int | None, Parameter(help="Number of Ray actors. Default: one per CPU of the cluster.")] = (
        None
    )
    dry_run: Annotated[bool, Parameter(help="Only report what would be done.")] = False
    json: Annotated[bool, Parameter(help="Print JSON for machines, and no progress.")] = False
