"""Settings of a model change: the audit of hits, and candidates that a share of live traffic is sent to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foreseen.settings.common import StoreSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChangeSettings(StoreSettings):
    """What is watched of a model and of its candidate (docs/changing-models.md)."""

    audit: Annotated[
        str, Parameter(help="Share of hit rows (0.1%) that the model computes again, to compare the answers. 0: none.")
    ] = "0"
    audit_rows_per_second: Annotated[
        float,
        Parameter(help="Maximum rows per second that one worker audits. More are dropped and counted.", show=False),
    ] = 5.0
    keep_hot_inputs: Annotated[
        int,
        Parameter(
            help="Memory of each worker for the inputs that it serves most, in bytes, for `models handover --hottest`; "
            "0: none are kept."
        ),
    ] = 0
    candidate: Annotated[
        str | None,
        Parameter(
            help="A candidate to replace a served model, as [MODEL=]ADDRESS: unix:/path, http://host:port or "
            "grpc://host:port (docs/changing-models.md)."
        ),
    ] = None
    candidate_model: Annotated[
        str | None,
        Parameter(help="Name of the model at the candidate's server. Default: that of the model served.", show=False),
    ] = None
    candidate_key_file: Annotated[
        Path | None, Parameter(help="File with the API key of the candidate's server.", show=False)
    ] = None
    candidate_digest: Annotated[
        str | None,
        Parameter(
            help="Version of a candidate whose server reports none. Change it whenever the candidate changes.",
            show=False,
        ),
    ] = None
    shadow: Annotated[
        str,
        Parameter(
            help="Share of computed rows (5%) that are also sent to the candidate, to compare the answers. 0: none."
        ),
    ] = "0"
    canary: Annotated[
        str | None,
        Parameter(
            help="Share of callers (10%) whom the candidate answers, always the same callers. See foreseen canary."
        ),
    ] = None
    shadow_hits: Annotated[
        bool, Parameter(help="Also send rows that the cache answered to the candidate.", negative="", show=False)
    ] = False
    shadow_rows: Annotated[
        int, Parameter(help="Number of rows after which one worker stops sending rows to the candidate.", show=False)
    ] = 100_000
    shadow_width: Annotated[
        str,
        Parameter(
            help="Width of the confidence interval of the changed share at which a worker stops as well.", show=False
        ),
    ] = "0.5%"
    shadow_rows_per_second: Annotated[
        float,
        Parameter(help="Maximum rows per second that one worker sends to the candidate. More are dropped.", show=False),
    ] = 50.0
