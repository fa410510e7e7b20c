"""Settings of `foreseen worker`: those of the proxy, as far as they are not about connections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foreseen.settings.proxy import ProxySettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkerSettings(ProxySettings):
    """A worker on the queue of jobs; it takes the proxy's settings, as far as they are not about connections."""

    job_rows: Annotated[int, Parameter(help="Rows of jobs that a worker computes at a time. More wait.")] = 1024
    metrics_port: Annotated[
        int | None,
        Parameter(help="TCP port of this worker's own /metrics, on --host. Default: none."),
    ] = None
    webhook_secret_file: Annotated[
        Path | None, Parameter(help="Secrets that sign webhooks, one per line. Default: DATA/webhook-secret.")
    ] = None
    webhook_seconds: Annotated[float, Parameter(help="Timeout of one webhook call.")] = 10.0
    webhook_tries: Annotated[
        int, Parameter(help="Maximum attempts to deliver a webhook. The pauses grow to an hour.")
    ] = 8
