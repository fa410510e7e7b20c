"""Settings of `foreseen proxy`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.settings.change import ChangeSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProxySettings(ChangeSettings):
    """The proxy: speaks the predict API and answers from memory, Redis or the model."""

    model: Annotated[
        tuple[str, ...],
        Parameter(
            help="A model to serve, NAME or NAME=ADDRESS (unix:/path or http://host:port); may be repeated. "
            "Default: minilm, or all of --upstream."
        ),
    ] = ()
    upstream: Annotated[
        tuple[str, ...],
        Parameter(
            help="An existing V2, embedding or rerank server behind the cache (http://host:port; V2 over gRPC: "
            "grpc://host:port). No manifest is needed: docs/upstream.md. If repeated, the addresses are "
            "replicas of one server."
        ),
    ] = ()
    upstream_api: Annotated[
        Literal["auto", "v2", "openai", "tei"], Parameter(help="Protocol of --upstream. auto: by its routes.")
    ] = "auto"
    upstream_kind: Annotated[
        Literal["auto", "embed", "rerank", "classify"],
        Parameter(help="What --upstream does with texts. auto: detected from its routes.", show=False),
    ] = "auto"
    upstream_key_file: Annotated[
        Path | None, Parameter(help="File with the API key of --upstream; read again when it changes.")
    ] = None
    upstream_pass_authorization: Annotated[
        bool,
        Parameter(
            help="Forward callers' Authorization to the upstream. Each credential has its own entries.", negative=""
        ),
    ] = False
    upstream_ca_file: Annotated[
        Path | None, Parameter(help="Certificates (PEM) that verify an https --upstream.", show=False)
    ] = None
    upstream_digest: Annotated[
        str | None, Parameter(help="Version of an upstream that reports none. Change it with the upstream.")
    ] = None
    upstream_tolerance: Annotated[
        float,
        Parameter(
            help="Largest difference between a row's answers alone and in a batch with which rows count as "
            "independent. For embeddings: 1 - cos.",
            show=False,
        ),
    ] = 1e-5
    upstream_probe: Annotated[
        bool,
        Parameter(help="Send a few random rows to upstream models, to test whether rows are independent.", show=False),
    ] = True
    host: Annotated[str, Parameter(help="Address to listen on; the default is reachable from this machine only.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Parameter(help="Port to listen on.")] = 8000
    grpc_port: Annotated[
        int | None,
        Parameter(help="Port of the V2 protocol over gRPC on --host (extra grpc, docs/grpc.md). Default: none."),
    ] = None
    fd: Annotated[
        int | None, Parameter(help="An inherited listening socket, instead of --host and --port.", show=False)
    ] = None
    ready_fd: Annotated[
        int | None, Parameter(help="A descriptor that this process writes to when it is ready.", show=False)
    ] = None
    slot: Annotated[int, Parameter(help="This worker's number among several, given by the supervisor.", show=False)] = 0
    redis: Annotated[
        str | None,
        Parameter(
            help="The far tier: redis://, rediss:// (TLS) or unix://PATH, redis+cluster:// or redis+sentinel:// with "
            "several hosts (docs/redis.md); 'none' for no far tier. Default: DATA's own."
        ),
    ] = None
    secret_file: Annotated[Path | None, Parameter(help="Root secret of all keys. Default: DATA/secret.")] = None
    keys_file: Annotated[
        Path | None,
        Parameter(
            help="Tenants with hashes of their keys, models and limits (docs/security.md). Read again when it "
            "changes. Without it every caller is public."
        ),
    ] = None
    tls_cert: Annotated[
        Path | None, Parameter(help="Certificate chain (PEM) of the listener; with it the proxy speaks TLS only.")
    ] = None
    tls_key: Annotated[
        Path | None, Parameter(help="Private key (PEM) of --tls-cert. Both files are read again when they change.")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Parameter(help="Authority (PEM) of client certificates: requests without one are refused (mutual TLS)."),
    ] = None
    internal_fd: Annotated[
        int | None, Parameter(help="A descriptor with the supervisor's own credential.", show=False)
    ] = None
    metrics_open: Annotated[
        bool,
        Parameter(
            help="With --keys-file: serve /metrics without a key. Otherwise it needs the key of an operator or viewer.",
            show=False,
        ),
    ] = False
    near_bytes: Annotated[int, Parameter(help="Memory of the near tier, per worker, in bytes; 0 turns it off.")] = (
        256 * 2**20
    )
    reply_cache_bytes: Annotated[
        int,
        Parameter(
            help="Memory of the answer cache (repeated bodies and requests with their replies), per worker. 0: off."
        ),
    ] = 96 * 2**20
    far_budget_ms: Annotated[
        float, Parameter(help="Longest wait for one far operation, in ms. Never retried.", show=False)
    ] = 50.0
    far_pending_bytes: Annotated[
        int,
        Parameter(help="Maximum bytes of entries waiting to be written to the far tier. More are dropped.", show=False),
    ] = 64 * 2**20
    lease_ms: Annotated[
        float,
        Parameter(
            help="Rows that take the model longer than this, in ms, are computed by one proxy under a lease, while "
            "all others on the same Redis wait. 0: all rows, inf: none.",
            show=False,
        ),
    ] = 50.0
    ttl_seconds: Annotated[float, Parameter(help="Maximum lifetime of an entry (hard TTL), ± 10 %.")] = 604800.0
    soft_ttl_seconds: Annotated[
        float | None, Parameter(help="Age after which an entry is refreshed while it is served. Default: never.")
    ] = None
    stale_while_revalidate_seconds: Annotated[
        float | None,
        Parameter(
            help="How long a stale entry is served while it is refreshed. Default: from soft to hard TTL.", show=False
        ),
    ] = None
    stale_if_error_seconds: Annotated[
        float, Parameter(help="How long a stale entry is served if the model fails.", show=False)
    ] = 86400.0
    ignore_client_cache_control: Annotated[
        bool, Parameter(help="Ignore Cache-Control of requests, since no-cache lets clients cause computations.")
    ] = False
    deadline_seconds: Annotated[float, Parameter(help="Deadline of a request that sets none.")] = 30.0
    longest_deadline_seconds: Annotated[float, Parameter(help="Largest Request-Timeout.", show=False)] = 300.0
    miss_rows: Annotated[
        int, Parameter(help="Maximum rows of one model that are computed at a time. More wait.", show=False)
    ] = 1024
    quarantine_seconds: Annotated[
        float,
        Parameter(help="How long a row that twice ended the model's process (poison pill) is refused.", show=False),
    ] = 600.0
    waiting_rows: Annotated[int, Parameter(help="Waiting rows of one model. More are refused with 503.")] = 65536
    body_bytes: Annotated[int, Parameter(help="Largest request body, decoded, in bytes.")] = 64 * 2**20
    body_seconds: Annotated[float, Parameter(help="How long a body may take to arrive.", show=False)] = 30.0
    keepalive_seconds: Annotated[float, Parameter(help="Timeout of an idle connection.", show=False)] = 75.0
    drain_seconds: Annotated[
        float, Parameter(help="Graceful shutdown: how long open connections may send a last request.")
    ] = 20.0
    connections: Annotated[
        int, Parameter(help="Open connections of a worker. Above this, idle ones are closed, then new ones refused.")
    ] = 10_000
    connection_requests: Annotated[
        int,
        Parameter(help="Number of requests after which a connection is closed gracefully. 0: no limit.", show=False),
    ] = 100_000
    head_seconds: Annotated[float, Parameter(help="How long a request's head may take to arrive.", show=False)] = 10.0
    write_seconds: Annotated[
        float,
        Parameter(
            help="A client that reads less than 64 KiB of its reply within this time is disconnected.", show=False
        ),
    ] = 30.0
    rate: Annotated[
        float, Parameter(help="Requests a second that one address may send to one worker; 0: no limit.")
    ] = 0.0
    rate_burst: Annotated[
        int, Parameter(help="Requests an idle address may send at once (burst), at least one second's.", show=False)
    ] = 0
    forwarded_hops: Annotated[
        int,
        Parameter(
            help="Number of trusted proxies in front. The client's address is taken at this position from the end of "
            "X-Forwarded-For. 0: the address that connects."
        ),
    ] = 0
    top_callers: Annotated[
        int, Parameter(help="Heaviest callers in the metrics, by address; the rest are one. 0: none.", show=False)
    ] = 10
    cors_origin: Annotated[
        tuple[str, ...],
        Parameter(help="Origin of pages whose scripts may call: https://HOST[:PORT], or *; may be repeated."),
    ] = ()
    observe: Annotated[
        tuple[str, ...],
        Parameter(
            help="A model that answers every request itself; the cache's answers are only compared. 'all': every model."
        ),
    ] = ()
    admin_token_file: Annotated[
        Path | None,
        Parameter(
            help="Keys of operators and viewers (docs/security.md), or one token. Default: DATA/admin-token. Keys in "
            "DATA/admin-keys.toml are valid as well."
        ),
    ] = None
    admin_port: Annotated[
        int | None,
        Parameter(
            help="TCP port of operators' routes on --host, instead of DATA/run/admin.sock; over TLS with --tls-cert."
        ),
    ] = None
    admin_fd: Annotated[
        int | None, Parameter(help="An inherited listening socket for operators' routes.", show=False)
    ] = None
    state: Annotated[
        str | None,
        Parameter(
            help="State store of purges and jobs, by an address like --redis; 'none' for none. Default: foreseen up's."
        ),
    ] = None
    state_replicas: Annotated[
        int,
        Parameter(
            help="Replicas of the state store that must have a job or purge before it is acknowledged. With 0 a "
            "failover may lose the last ones."
        ),
    ] = 0
    queue_bytes: Annotated[
        int, Parameter(help="Memory of jobs and results in the state store, in bytes. More are refused (503).")
    ] = 1024 * 2**20
    queue_share: Annotated[
        float,
        Parameter(
            help="Largest share of the queue that one caller (address) can have while no other caller uses it. With "
            "others each has less. 1: all of it.",
            show=False,
        ),
    ] = 0.5
    job_seconds: Annotated[float, Parameter(help="Time after which a job that has not ended expires.")] = 86400.0
    result_seconds: Annotated[float, Parameter(help="How long the result of a job can be fetched.")] = 3600.0
    batch_lines: Annotated[int, Parameter(help="Maximum lines of a batch of predictions.", show=False)] = 10_000
    webhook_allow: Annotated[
        tuple[str, ...],
        Parameter(
            help="Allowed webhook targets: HOST, *.DOMAIN, https://HOST:PORT or http://HOST:PORT; may be repeated. "
            "Default: webhooks are off."
        ),
    ] = ()
    webhook_ports: Annotated[
        tuple[int, ...], Parameter(help="Ports of webhooks to hosts allowed without a port.", show=False)
    ] = (443,)
    webhook_networks: Annotated[
        tuple[str, ...], Parameter(help="Private networks (10.0.0.0/8) that allowed names may resolve to.", show=False)
    ] = ()
    webhook_secret_file: Annotated[
        Path | None,
        Parameter(help="Secrets that sign webhooks, one per line. Default: DATA/webhook-secret.", show=False),
    ] = None
    webhook_seconds: Annotated[float, Parameter(help="Timeout of one webhook call.", show=False)] = 10.0
    webhook_tries: Annotated[
        int, Parameter(help="Maximum attempts to deliver a webhook. The pauses grow to an hour.", show=False)
    ] = 8
    server_timing: Annotated[bool, Parameter(help="Send the Server-Timing header.", show=False)] = True
    access_log_hits: Annotated[
        float,
        Parameter(help="Share of hits that are logged (at level info); every other request is logged.", show=False),
    ] = 0.01
    metrics: Annotated[bool, Parameter(help="Count metrics; off only to measure what counting costs.", show=False)] = (
        True
    )
    triton_metrics: Annotated[
        bool, Parameter(help="Also export metrics under Triton's names: nv_inference_*, nv_cache_*.")
    ] = False

    @property
    def webhook_secret(self) -> Path:
        return self.webhook_secret_file or self.data / "webhook-secret"

    @property
    def own_models(self) -> tuple[str, ...]:
        """The models with a manifest or an address of their own; with an upstream, --model names the upstream's."""
        return () if self.upstream else self.model or ("minilm",)
