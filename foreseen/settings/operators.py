"""Settings of commands that look at a running system or change it: `key`, `explain`, `jobs`, `purge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.settings.common import Common, StoreSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KeySettings(Common):
    """Settings for making a request's keys without a proxy."""

    model: Annotated[str, Parameter(help="The model that the request is for.")]
    protocol: Annotated[Literal["v2", "v1"], Parameter(help="Protocol of the request file.")] = "v2"
    header_length: Annotated[
        int | None, Parameter(help="Inference-Header-Content-Length of a binary V2 request; 0 for raw binary.")
    ] = None
    digest: Annotated[str | None, Parameter(help="Model digest; default: the running model's.")] = None
    secret_file: Annotated[Path | None, Parameter(help="Root secret of all keys. Default: DATA/secret.")] = None
    tenant: Annotated[str | None, Parameter(help="The tenant that sends the request. Default: public.")] = None
    keys_file: Annotated[
        Path | None, Parameter(help="Keys file with the tenant's scope. Default: a scope of its own.")
    ] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JobsSettings(StoreSettings):
    """Where the queue of jobs is."""

    state: Annotated[str | None, Parameter(help="State store, by its address. Default: DATA's own.")] = None
    retry: Annotated[str | None, Parameter(help="Put this dead letter back into the queue.")] = None
    drop: Annotated[str | None, Parameter(help="Remove this dead letter from the list.")] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class UsageSettings(StoreSettings):
    """Which usage of tenants is shown, and where it is kept."""

    state: Annotated[str | None, Parameter(help="State store, by its address. Default: DATA's own.")] = None
    tenant: Annotated[str | None, Parameter(help="Show only this tenant. Default: all tenants.")] = None
    since: Annotated[
        str, Parameter(help="Period to show, in whole hours or days: 24h, 7d. Figures are kept for 90 days.")
    ] = "24h"
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OperatorSettings(Common):
    """Where operators' routes are, and by which token they are asked."""

    admin: Annotated[
        str | None,
        Parameter(help="HOST:PORT of operators' routes, https://HOST:PORT over TLS. Default: DATA/run/admin.sock."),
    ] = None
    admin_ca_file: Annotated[
        Path | None, Parameter(help="Certificates (PEM) that verify operators' routes over TLS. Default: the system's.")
    ] = None
    admin_token_file: Annotated[Path | None, Parameter(help="Token of operators. Default: DATA/admin-token.")] = None
    timeout_seconds: Annotated[float, Parameter(help="How long to wait for the proxy and its workers.")] = 5.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CanarySettings(OperatorSettings):
    """How many callers the candidate answers. Without --share, --promote and --abort nothing changes."""

    share: Annotated[str | None, Parameter(help="Let the candidate answer this share of callers (25%).")] = None
    promote: Annotated[bool, Parameter(help="Let the candidate answer all callers.", negative="")] = False
    abort: Annotated[bool, Parameter(help="Let the candidate answer no caller.", negative="")] = False
    url: Annotated[
        str | None, Parameter(help="Address of the running proxy. Default: that of the last `foreseen up` in --data.")
    ] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PurgeSettings(OperatorSettings):
    """What is purged, and where. See WITHOUT_ENVIRONMENT."""

    model: Annotated[str | None, Parameter(help="Purge all entries of a model.")] = None
    digest: Annotated[
        str | None,
        Parameter(
            help="Purge all entries computed under this model digest or artifact digest (at least its first eight "
            "digits)."
        ),
    ] = None
    tenant: Annotated[
        str | None, Parameter(help="Purge every entry of a tenant; `public` for those of callers without one.")
    ] = None
    key: Annotated[str | None, Parameter(help="Purge one row's entry, by its key (foreseen key, or explain).")] = None
    all: Annotated[bool, Parameter(help="Purge everything.")] = False
    even_if_unknown: Annotated[
        bool,
        Parameter(help="Purge even if no proxy, state store or artifact knows the name.", negative=""),
    ] = False
    forget: Annotated[
        str | None, Parameter(help="Instead of a purge: unregister a worker on another machine that has ended.")
    ] = None


WITHOUT_ENVIRONMENT = {
    "purge": ("model", "digest", "tenant", "key", "all", "even_if_unknown", "forget"),
    "canary": ("share", "promote", "abort"),
}
"""Flags by command that have no environment name: FORESEEN_MODEL is a server's, and must not purge it."""
