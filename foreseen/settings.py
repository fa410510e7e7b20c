"""Settings: one frozen dataclass per command; flags, environment names, `--help` and the docs' tables come of them.

Only `cli.py` reads the environment: every flag `--near-bytes` is also `FORESEEN_NEAR_BYTES`. A flag wins.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.errors import SetupError
from foreseen.paths import MODELS


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    data: Annotated[Path, Parameter(help="Folder of secret, sockets, stores and built models.")] = Path("data")
    models: Annotated[Path | None, Parameter(help="A folder of further models, one NAME/model.toml each.")] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Parameter(help="Least level that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["json", "text"] | None,
        Parameter(
            help="How stderr is written. Default: text on a terminal, else json (of servers; of commands, text)."
        ),
    ] = None

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Where manifests are looked for, the operator's folder first. Raises SetupError where that does not exist: a
        misspelt one would leave the models in the box in force."""
        if self.models is not None and not self.models.is_dir():
            raise SetupError(f"--models {self.models}: there is no such folder")
        return ((self.models,) if self.models else ()) + (MODELS,)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StoreSettings(Common):
    """How Redis, the state store and Sentinels are to be spoken to."""

    redis_ca_file: Annotated[
        Path | None,
        Parameter(help="Certificates (PEM) that verify Redis and the state store over TLS; default: the system's."),
    ] = None
    sentinel_user: Annotated[str | None, Parameter(help="ACL user that Sentinels ask for; default: none.")] = None
    sentinel_password_file: Annotated[
        Path | None, Parameter(help="File with the password that Sentinels ask for; default: none is sent.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InferenceSettings(Common):
    """One model's own process: a V2 server over ONNX Runtime."""

    model: Annotated[str, Parameter(help="The model to serve.")]
    uds: Annotated[Path | None, Parameter(help="Unix socket to listen on; without it, --host and --port.")] = None
    ready_fd: Annotated[int | None, Parameter(help="A descriptor that is told when this process is ready.")] = None
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Parameter(help="Port to listen on.")] = 8001
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt"], Parameter(help="Execution provider; cuda and tensorrt need the gpu extra.")
    ] = "cpu"
    fallback: Annotated[
        Literal["refuse", "warn"], Parameter(help="What to do when a GPU model's nodes fall back to the CPU.")
    ] = "refuse"
    threads: Annotated[int, Parameter(help="Threads within one run of the model (intra_op_num_threads).")] = 1
    instances: Annotated[int, Parameter(help="Sessions that run batches side by side; 0: one per core.")] = 1
    queue_rows: Annotated[int, Parameter(help="Rows that may wait; more are refused with 503.")] = 4096
    max_rows: Annotated[int | None, Parameter(help="Rows of one batch at most; default: the manifest's.")] = None
    max_tokens: Annotated[int | None, Parameter(help="Rows × longest row of one batch; default: the manifest's.")] = (
        None
    )
    wait_ms: Annotated[float | None, Parameter(help="How long an idle session waits for company, in ms.")] = None
    run_seconds: Annotated[float, Parameter(help="A run that takes longer is hung: it is ended, then the process.")] = (
        30.0
    )
    deadline_seconds: Annotated[float, Parameter(help="A request without a timeout of its own has this long.")] = 30.0
    body_bytes: Annotated[int, Parameter(help="Largest request body, decoded, in bytes.")] = 64 * 2**20
    body_seconds: Annotated[float, Parameter(help="How long a body may take to arrive.")] = 30.0
    drain_seconds: Annotated[
        float, Parameter(help="How long idle connections are kept open for a last request before this process ends.")
    ] = 20.0
    triton_metrics: Annotated[
        bool, Parameter(help="Tell metrics under Triton's names too: nv_inference_*, nv_cache_*.")
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProxySettings(StoreSettings):
    """The proxy: speaks the predict API and answers from memory, Redis or the model."""

    model: Annotated[
        tuple[str, ...],
        Parameter(
            help="A model to serve, NAME or NAME=ADDRESS (unix:/path or http://host:port); may be repeated. "
            "Default: minilm, or all of --upstream."
        ),
    ] = ()
    upstream: Annotated[
        str | None,
        Parameter(
            help="A V2 server (http://host:port) to stand in front of: no manifest is needed, see docs/upstream.md."
        ),
    ] = None
    upstream_digest: Annotated[
        str | None, Parameter(help="What stands for the upstream's version where it does not say; change it with it.")
    ] = None
    upstream_tolerance: Annotated[
        float, Parameter(help="Largest difference of an answer alone and in a batch with which rows are independent.")
    ] = 1e-5
    upstream_probe: Annotated[
        bool, Parameter(help="Ask upstream models a few random rows, to see whether rows are independent.")
    ] = True
    host: Annotated[str, Parameter(help="Address to listen on; other machines reach it only if you say so.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Parameter(help="Port to listen on.")] = 8000
    fd: Annotated[int | None, Parameter(help="An inherited listening socket, instead of --host and --port.")] = None
    ready_fd: Annotated[int | None, Parameter(help="A descriptor that is told when this process is ready.")] = None
    slot: Annotated[int, Parameter(help="This worker's number among several; the supervisor gives it.")] = 0
    redis: Annotated[
        str | None,
        Parameter(
            help="The far tier: redis://, rediss:// (TLS) or unix://PATH, redis+cluster:// or redis+sentinel:// with "
            "several hosts (docs/redis.md); 'none' for no far tier. Default: DATA's own."
        ),
    ] = None
    secret_file: Annotated[Path | None, Parameter(help="Root secret of all keys. Default: DATA/secret.")] = None
    near_bytes: Annotated[int, Parameter(help="Memory of the near tier, per worker, in bytes; 0 turns it off.")] = (
        256 * 2**20
    )
    reply_cache_bytes: Annotated[
        int, Parameter(help="Memory of bodies and requests that come again, with their replies, per worker; 0: off.")
    ] = 96 * 2**20
    far_budget_ms: Annotated[float, Parameter(help="Longest wait for one far operation, in ms. Never retried.")] = 50.0
    far_keys: Annotated[int, Parameter(help="Keys of one MGET at most.")] = 256
    far_value_bytes: Annotated[int, Parameter(help="A larger entry is answered but not stored.")] = 4 * 2**20
    far_pending_bytes: Annotated[int, Parameter(help="Entries on their way to the far tier; more are dropped.")] = (
        64 * 2**20
    )
    lease_ms: Annotated[
        float,
        Parameter(
            help="Rows of one moment that take the model longer than so many ms are computed by one proxy, and waited "
            "for by all others on the same Redis; 0 for all rows, inf for none."
        ),
    ] = 50.0
    ttl_seconds: Annotated[float, Parameter(help="How long an entry lives at most (hard TTL), give or take 10 %.")] = (
        604800.0
    )
    soft_ttl_seconds: Annotated[
        float | None, Parameter(help="Past this age an entry is answered while it is refreshed; default: never.")
    ] = None
    stale_while_revalidate_seconds: Annotated[
        float | None,
        Parameter(help="How long a stale entry is answered while it is refreshed; default: from soft to hard TTL."),
    ] = None
    stale_if_error_seconds: Annotated[
        float, Parameter(help="How long a stale entry is answered where the model fails.")
    ] = 86400.0
    ignore_client_cache_control: Annotated[
        bool, Parameter(help="Ignore Cache-Control of requests: no-cache lets clients cause cost.")
    ] = False
    deadline_seconds: Annotated[float, Parameter(help="A request without a timeout of its own has this long.")] = 30.0
    longest_deadline_seconds: Annotated[float, Parameter(help="What Request-Timeout may ask for at most.")] = 300.0
    model_rows: Annotated[int, Parameter(help="Rows of one request to a model process; more are split.")] = 256
    model_requests: Annotated[int, Parameter(help="Requests to one model process at a time; more wait.")] = 64
    miss_rows: Annotated[int, Parameter(help="Rows of one model that are computed at a time; more wait.")] = 1024
    quarantine_seconds: Annotated[
        float, Parameter(help="How long a row that has twice ended the model's process, alone, is refused with 422.")
    ] = 600.0
    waiting_rows: Annotated[int, Parameter(help="Rows of one model that may wait; more are refused with 503.")] = 65536
    body_bytes: Annotated[int, Parameter(help="Largest request body, decoded, in bytes.")] = 64 * 2**20
    body_seconds: Annotated[float, Parameter(help="How long a body may take to arrive.")] = 30.0
    keepalive_seconds: Annotated[float, Parameter(help="An idle connection is closed after this long.")] = 75.0
    drain_seconds: Annotated[
        float, Parameter(help="How long idle connections are kept open for a last request before this process ends.")
    ] = 20.0
    connections: Annotated[
        int, Parameter(help="Open connections of one worker; above it idle ones are closed, then new ones refused.")
    ] = 10_000
    connection_requests: Annotated[
        int, Parameter(help="Requests of one connection, then it is closed in good order; 0: as many as come.")
    ] = 100_000
    head_bytes: Annotated[int, Parameter(help="Largest request head that arrives in parts, in bytes.")] = 64 * 2**10
    header_bytes: Annotated[int, Parameter(help="Longest request line and longest header field, in bytes.")] = 8190
    headers: Annotated[int, Parameter(help="Header fields of one request.")] = 128
    head_seconds: Annotated[float, Parameter(help="How long a request's head may take to arrive.")] = 10.0
    write_seconds: Annotated[
        float, Parameter(help="A caller that takes less than 64 KiB of its reply in this long is cut off.")
    ] = 30.0
    rate: Annotated[
        float, Parameter(help="Requests a second that one address may send to one worker; 0: as many as come.")
    ] = 0.0
    rate_burst: Annotated[
        int, Parameter(help="Requests that an address which was quiet may send at once; at least one second's.")
    ] = 0
    observe: Annotated[
        tuple[str, ...],
        Parameter(help="A model that always answers itself while the cache is only compared with it; 'all' for all."),
    ] = ()
    observe_tolerance: Annotated[float, Parameter(help="Largest difference of a float that counts as close.")] = 1e-5
    admin_token_file: Annotated[
        Path | None,
        Parameter(help="Token of operators' routes. Default: DATA/admin-token; without it they are shut."),
    ] = None
    admin_port: Annotated[
        int | None, Parameter(help="TCP port of operators' routes on --host, instead of DATA/run/admin.sock.")
    ] = None
    admin_fd: Annotated[int | None, Parameter(help="An inherited listening socket for operators' routes.")] = None
    state: Annotated[
        str | None,
        Parameter(
            help="State store of purges and jobs, by an address like --redis; 'none' for none. Default: foreseen up's."
        ),
    ] = None
    state_replicas: Annotated[
        int,
        Parameter(
            help="Replicas of the state store that have a job or purge before it is acknowledged; with 0 a failover "
            "may lose the last ones."
        ),
    ] = 0
    queue_jobs: Annotated[int, Parameter(help="Jobs that may wait; more are refused with 503.")] = 100_000
    queue_bytes: Annotated[
        int, Parameter(help="Memory of jobs and their results in the state store, in bytes; more are refused with 503.")
    ] = 1024 * 2**20
    queue_share: Annotated[
        float,
        Parameter(
            help="Share of the queue that one caller (address) can have while it is empty otherwise; with others in it "
            "each has less. 1: all of it."
        ),
    ] = 0.5
    job_seconds: Annotated[float, Parameter(help="A job that is not done by then has expired.")] = 86400.0
    result_seconds: Annotated[float, Parameter(help="How long the result of a job can be fetched.")] = 3600.0
    batch_lines: Annotated[int, Parameter(help="Lines of a batch of predictions at most.")] = 10_000
    webhook_allow: Annotated[
        tuple[str, ...],
        Parameter(
            help="Where webhooks may go: HOST, *.DOMAIN, https://HOST:PORT or http://HOST:PORT; may be repeated. "
            "Without it they are off."
        ),
    ] = ()
    webhook_ports: Annotated[
        tuple[int, ...], Parameter(help="Ports of webhooks to hosts that are allowed without.")
    ] = (443,)
    webhook_networks: Annotated[
        tuple[str, ...],
        Parameter(help="Networks (10.0.0.0/8) that allowed names may lead to, though they are not the internet's."),
    ] = ()
    webhook_secret_file: Annotated[
        Path | None, Parameter(help="Secrets that webhooks are signed with, one a line. Default: DATA/webhook-secret.")
    ] = None
    webhook_seconds: Annotated[float, Parameter(help="How long one call of a webhook may take.")] = 10.0
    webhook_tries: Annotated[int, Parameter(help="How often a webhook is sent at most; pauses grow to an hour.")] = 8
    webhook_calls: Annotated[int, Parameter(help="Webhooks under way at a time; a fourth of them to one host.")] = 16
    server_timing: Annotated[bool, Parameter(help="Send Server-Timing.")] = True
    access_log_hits: Annotated[
        float, Parameter(help="Share of hits that get a line in the log (at level info); all else gets one each.")
    ] = 0.01
    metrics: Annotated[bool, Parameter(help="Count. Without, /metrics is empty: to measure what counting costs.")] = (
        True
    )
    triton_metrics: Annotated[
        bool, Parameter(help="Tell metrics under Triton's names too: nv_inference_*, nv_cache_*.")
    ] = False

    @property
    def webhook_secret(self) -> Path:
        return self.webhook_secret_file or self.data / "webhook-secret"

    @property
    def own_models(self) -> tuple[str, ...]:
        """The models with a manifest or an address of their own; with an upstream, --model names the upstream's."""
        return () if self.upstream is not None else self.model or ("minilm",)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkerSettings(ProxySettings):
    """A worker on the queue of jobs; it takes the proxy's settings, as far as they are not about connections."""

    job_rows: Annotated[int, Parameter(help="Rows of jobs that a worker has aboard at a time; more wait.")] = 1024
    metrics_port: Annotated[
        int | None,
        Parameter(help="TCP port of this worker's own /metrics, on --host. Default: none."),
    ] = None
    webhook_seconds: Annotated[float, Parameter(help="How long one call of a webhook may take.")] = 10.0
    webhook_tries: Annotated[
        int, Parameter(help="How often a webhook is sent at most; the pauses grow to an hour.")
    ] = 8
    webhook_calls: Annotated[int, Parameter(help="Webhooks under way at a time; a fourth of them to one host.")] = 16


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JobsSettings(StoreSettings):
    """Where the queue of jobs is."""

    state: Annotated[str | None, Parameter(help="State store, by its address. Default: DATA's own.")] = None
    retry: Annotated[str | None, Parameter(help="Put this dead letter back into the queue.")] = None
    drop: Annotated[str | None, Parameter(help="Take this dead letter off the list.")] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class UpSettings(ProxySettings):
    """Everything on one machine: Valkey, one process per model and the proxy, supervised."""

    workers: Annotated[int, Parameter(help="Proxy processes on the one port.")] = 1
    job_workers: Annotated[int, Parameter(help="Worker processes on the queue of jobs; 0: none here.")] = 1
    job_metrics_port: Annotated[
        int | None,
        Parameter(
            help="TCP port of the first such worker's /metrics, on 127.0.0.1; the others take the next. Default: none."
        ),
    ] = None
    job_rows: Annotated[int, Parameter(help="Rows of jobs that a worker has aboard at a time; more wait.")] = 1024
    far_bytes: Annotated[int, Parameter(help="Memory of the embedded Valkey, in bytes.")] = 1024 * 2**20
    threads: Annotated[int, Parameter(help="Threads within one run of a model.")] = 1
    instances: Annotated[int, Parameter(help="Sessions per model process; 0: one per core.")] = 1
    provider: Annotated[Literal["cpu", "cuda", "tensorrt"], Parameter(help="Execution provider.")] = "cpu"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DoctorSettings(UpSettings):
    """The system to examine. What is not given is what `foreseen up` in --data was started with last."""

    url: Annotated[str | None, Parameter(help="Where its proxy answers. Default: by --host and --port.")] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KeySettings(Common):
    """What it takes to make a request's keys away from a proxy."""

    model: Annotated[str, Parameter(help="The model that the request is for.")]
    protocol: Annotated[Literal["v2", "v1"], Parameter(help="How the request file is to be read.")] = "v2"
    header_length: Annotated[
        int | None, Parameter(help="Inference-Header-Content-Length of a binary V2 request; 0 for raw binary.")
    ] = None
    digest: Annotated[str | None, Parameter(help="Model digest; default: what the running model says.")] = None
    secret_file: Annotated[Path | None, Parameter(help="Root secret of all keys. Default: DATA/secret.")] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WarmSettings(StoreSettings):
    """What a batch run that fills the cache is told."""

    model: Annotated[str, Parameter(help="The model whose answers are wanted.")]
    url: Annotated[
        str | None, Parameter(help="A running proxy to ask instead; then neither secret nor Redis is needed.")
    ] = None
    admin_token_file: Annotated[
        Path | None,
        Parameter(help="Operators' token, for an import through a proxy. Default: DATA/admin-token."),
    ] = None
    map: Annotated[tuple[str, ...], Parameter(help="COLUMN=INPUT where they differ; may be repeated.")] = ()
    outputs: Annotated[
        tuple[str, ...],
        Parameter(help="Import: COLUMN=OUTPUT, or 'all' where they are called alike; no model is asked."),
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
    sql_table: Annotated[str, Parameter(help="Table of that database; made where it is missing.")] = "predictions"
    rows_per_second: Annotated[float | None, Parameter(help="Rows that the model is asked for at most.")] = None
    batch_ms: Annotated[
        float, Parameter(help="How long one request keeps the model; an online miss waits for at most one, in ms.")
    ] = 50.0
    chunk_rows: Annotated[int, Parameter(help="Rows between two checkpoints.")] = 65536
    checkpoint: Annotated[
        Path | None, Parameter(help="Folder of checkpoints and rejected rows. Default: DATA/warm.")
    ] = None
    error_budget: Annotated[str, Parameter(help="Share of the rows (1%) that may fail before the status is 1.")] = "0%"
    ttl_seconds: Annotated[float, Parameter(help="How long an entry lives at most, give or take 10 %.")] = 604800.0
    far_value_bytes: Annotated[int, Parameter(help="A larger entry is not stored.")] = 4 * 2**20
    redis: Annotated[
        str | None, Parameter(help="The far tier, one server or behind Sentinels. Default: DATA's own.")
    ] = None
    state: Annotated[
        str | None, Parameter(help="State store of purges; 'none' for none. Default: DATA's own, where it runs.")
    ] = None
    secret_file: Annotated[Path | None, Parameter(help="Root secret of all keys. Default: DATA/secret.")] = None
    address: Annotated[
        str | None, Parameter(help="The model process, unix:/path or http://host:port. Default: DATA's own.")
    ] = None
    patience_seconds: Annotated[
        float, Parameter(help="How long a model or a Redis that is away, full or silent is waited for.")
    ] = 60.0
    stand_back: Annotated[
        bool,
        Parameter(help="Compute only while nobody else wants the core (Linux's idle class); imports never do."),
    ] = True
    ray: Annotated[
        bool, Parameter(help="Share the work out by Ray: the cluster of RAY_ADDRESS, else the cores of this machine.")
    ] = False
    ray_workers: Annotated[int | None, Parameter(help="Ray's actors; default: one per CPU of the cluster.")] = None
    dry_run: Annotated[bool, Parameter(help="Only say what would be done.")] = False
    json: Annotated[bool, Parameter(help="Print JSON for machines, and no progress.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PurgeSettings(Common):
    """What is purged, and where. See PURGE_TARGETS."""

    model: Annotated[str | None, Parameter(help="Purge everything of a model.")] = None
    digest: Annotated[
        str | None,
        Parameter(
            help="Purge everything that was computed under this model digest or artifact digest; its first eight "
            "digits or more are enough."
        ),
    ] = None
    key: Annotated[str | None, Parameter(help="Purge one row's entry, by its key (foreseen key, or explain).")] = None
    all: Annotated[bool, Parameter(help="Purge everything.")] = False
    even_if_unknown: Annotated[
        bool,
        Parameter(help="Write the purge also where no proxy, state store or artifact knows the name.", negative=""),
    ] = False
    timeout_seconds: Annotated[float, Parameter(help="How long workers have to confirm.")] = 5.0
    admin: Annotated[str | None, Parameter(help="HOST:PORT of operators' routes. Default: DATA/run/admin.sock.")] = None
    admin_token_file: Annotated[Path | None, Parameter(help="Token of operators. Default: DATA/admin-token.")] = None
    forget: Annotated[
        str | None, Parameter(help="Instead: a worker of another machine has ended and is not to be waited for.")
    ] = None


PURGE_TARGETS = ("model", "digest", "key", "all", "even_if_unknown", "forget")
"""Flags of `foreseen purge` that have no environment name: FORESEEN_MODEL is a server's, and must not purge it."""


def arguments(settings: Common, kind: type[Common]) -> list[str]:
    """The flags that give a command of another kind the same settings, as far as it has them and they are not its own
    defaults."""
    given = {f.name: getattr(settings, f.name) for f in fields(settings)}
    flags: list[str] = []
    for f in fields(kind):
        value = given.get(f.name, f.default)
        if value == f.default or value is None:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            name = f.name.replace("_", "-")
            flags.append((f"--{name}" if one else f"--no-{name}") if isinstance(one, bool) else f"--{name}={one}")
    return flags


NAMES: dict[str, type[Common]] = {
    "up": UpSettings,
    "proxy": ProxySettings,
    "worker": WorkerSettings,
    "inference": InferenceSettings,
    "key": KeySettings,
    "purge": PurgeSettings,
    "doctor": DoctorSettings,
    "warm": WarmSettings,
    "jobs": JobsSettings,
}
