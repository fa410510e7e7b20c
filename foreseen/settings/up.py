"""Settings of `foreseen up` and `foreseen doctor`: those of the proxy, and of what else `up` starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.settings.kafka import BrokerSettings
from foreseen.settings.proxy import ProxySettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class UpSettings(ProxySettings):
    """Everything on one machine: Valkey, one process per model and the proxy, supervised."""

    workers: Annotated[int, Parameter(help="Number of proxy processes on the port.")] = 1
    job_workers: Annotated[int, Parameter(help="Number of worker processes for queued jobs. 0: none.")] = 1
    job_metrics_port: Annotated[
        int | None,
        Parameter(
            help="TCP port of the first job worker's /metrics, on 127.0.0.1; the others use the next ports. Default: "
            "none."
        ),
    ] = None
    job_rows: Annotated[int, Parameter(help="Rows of jobs that a worker computes at a time. More wait.")] = 1024
    webhook_secret_file: Annotated[
        Path | None, Parameter(help="Secrets that sign webhooks, one per line. Default: DATA/webhook-secret.")
    ] = None
    far_bytes: Annotated[int, Parameter(help="Memory of the embedded Valkey, in bytes.")] = 1024 * 2**20
    threads: Annotated[int, Parameter(help="Threads per run of a model (intra_op_num_threads).")] = 1
    instances: Annotated[int, Parameter(help="Sessions per model process. 0: one per core.")] = 1
    provider: Annotated[Literal["cpu", "cuda", "tensorrt"], Parameter(help="Execution provider.")] = "cpu"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DoctorSettings(BrokerSettings, UpSettings):
    """The system to examine. The default of each setting is that of the last `foreseen up` in --data."""

    url: Annotated[str | None, Parameter(help="Address of its proxy. Default: from --host and --port.")] = None
    json: Annotated[bool, Parameter(help="Print JSON for machines.")] = False
