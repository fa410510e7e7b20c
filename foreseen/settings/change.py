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
        str, Parameter(help="Share of hit rows (0.1%) that are computed again and compared with the model; 0: none.")
    ] = "0"
    audit_rows_per_second: Annotated[
        float, Parameter(help="Rows that one worker audits a second at most; more are dropped and counted.", show=False)
    ] = 5.0
    candidate: Annotated[
        str | None,
        Parameter(
            help="A model that may take the place of one served here, as [MODEL=]ADDRESS: unix:/path, http://host:port "
            "or grpc://host:port (docs/changing-models.md)."
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
        Parameter(help="Version of a candidate whose server reports none; change it with the candidate.", show=False),
    ] = None
    shadow: Annotated[
        str, Parameter(help="Share of computed rows (5%) that the candidate answers, too, to compare; 0: none.")
    ] = "0"
    canary: Annotated[
        str | None,
        Parameter(help="Share of callers (10%) that the candidate answers, always the same ones; see foreseen canary."),
    ] = None
    shadow_hits: Annotated[
        bool, Parameter(help="Send rows that the cache answered to the candidate, too.", negative="", show=False)
    ] = False
    shadow_rows: Annotated[
        int, Parameter(help="Rows that one worker compares; then it stops sending them.", show=False)
    ] = 100_000
    shadow_width: Annotated[
        str, Parameter(help="Width of the changed share's interval at which a worker stops, too.", show=False)
    ] = "0.5%"
    shadow_rows_per_second: Annotated[
        float,
        Parameter(help="Rows that one worker sends to the candidate a second at most; more are dropped.", show=False),
    ] = 50.0
