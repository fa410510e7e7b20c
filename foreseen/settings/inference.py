"""Settings of `foreseen inference`, one model's own process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.settings.common import Common


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InferenceSettings(Common):
    """One model's own process: a V2 server over ONNX Runtime."""

    model: Annotated[str, Parameter(help="The model to serve.")]
    artifact: Annotated[
        str | None, Parameter(help="Digest of the artifact to serve; default: the one in force.", show=False)
    ] = None
    uds: Annotated[Path | None, Parameter(help="Unix socket to listen on; without it, --host and --port.")] = None
    ready_fd: Annotated[
        int | None, Parameter(help="A descriptor that this process writes to when it is ready.", show=False)
    ] = None
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Parameter(help="Port to listen on.")] = 8001
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt"], Parameter(help="Execution provider; cuda and tensorrt need the gpu extra.")
    ] = "cpu"
    fallback: Annotated[
        Literal["refuse", "warn"], Parameter(help="What to do when a GPU model's nodes fall back to the CPU.")
    ] = "refuse"
    threads: Annotated[int, Parameter(help="Threads per run of the model (intra_op_num_threads).")] = 1
    instances: Annotated[int, Parameter(help="Sessions that run batches in parallel. 0: one per core.")] = 1
    queue_rows: Annotated[int, Parameter(help="Maximum waiting rows. More are refused with 503.")] = 4096
    max_rows: Annotated[int | None, Parameter(help="Maximum rows of one batch. Default: the manifest's.")] = None
    max_tokens: Annotated[
        int | None, Parameter(help="Maximum of rows × longest row of one batch. Default: the manifest's.")
    ] = None
    wait_ms: Annotated[float | None, Parameter(help="How long an idle session waits for more rows, in ms.")] = None
    run_seconds: Annotated[
        float, Parameter(help="Time after which a run is stopped. If it continues nevertheless, the process exits.")
    ] = 30.0
    deadline_seconds: Annotated[float, Parameter(help="Deadline of a request that sets none.")] = 30.0
    body_bytes: Annotated[int, Parameter(help="Largest request body, decoded, in bytes.")] = 64 * 2**20
    body_seconds: Annotated[float, Parameter(help="How long a body may take to arrive.")] = 30.0
    drain_seconds: Annotated[
        float,
        Parameter(
            help="Graceful shutdown: how long open connections may send a last request before this process ends."
        ),
    ] = 20.0
    triton_metrics: Annotated[
        bool, Parameter(help="Also export metrics under Triton's names: nv_inference_*, nv_cache_*.")
    ] = False
