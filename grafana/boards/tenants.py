"""Tenants: what each asks for, uses, saves, and is refused."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import NEEDS_NONE, OURS, RATE, rate

_HITS = f'rate(foreseen_tenant_rows_total{{{OURS}, result="hit"}}[{RATE}])'
_ROWS = f"rate(foreseen_tenant_rows_total{{{OURS}}}[{RATE}])"
HIT_RATIO = f"sum by (tenant) ({_HITS}) / sum by (tenant) ({_ROWS})"

TENANTS = (
    Row(
        "What tenants ask for",
        (
            Panel(
                "Requests",
                "Answered requests by tenant: the first 100 of the keys file, the others as other.",
                "reqps",
                ((rate("foreseen_tenant_requests_total", "tenant", OURS), "{{tenant}}"),),
            ),
            Panel(
                "Rows",
                "Answered rows by tenant.",
                "ops",
                ((rate("foreseen_tenant_rows_total", "tenant", OURS), "{{tenant}}"),),
            ),
            Panel(
                "Hit ratio",
                "Rows that cost the model nothing, of all rows of the tenant.",
                "percentunit",
                (
                    (
                        HIT_RATIO,
                        "{{tenant}}",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "What they cost and save",
        (
            Panel(
                "Model seconds used",
                "Seconds of computation in a second, by tenant: misses only.",
                "none",
                ((rate("foreseen_tenant_model_seconds_total", "tenant", OURS), "{{tenant}}"),),
            ),
            Panel(
                "Model seconds saved",
                "Seconds of computation in a second that hits saved, by tenant.",
                "none",
                ((rate("foreseen_tenant_saved_seconds_total", "tenant", OURS), "{{tenant}}"),),
            ),
        ),
    ),
    Row(
        "Quotas",
        (
            Panel(
                "Refused by quota",
                "Requests answered with 429 quota_exceeded, by tenant and limit.",
                "ops",
                ((rate("foreseen_tenant_refused_total", "tenant, limit", OURS), "{{tenant}} {{limit}}"),),
            ),
            Panel(
                "Reports that failed",
                "Processes that could not reach the state store: the last shares of quotas stay in force. See runbook: "
                "ForeseenQuotasNotReconciled.",
                "ops",
                (
                    (
                        f'sum by (result) (rate(foreseen_quota_reports_total{{{OURS}, result!="ok"}}[{RATE}]))',
                        "{{result}}",
                    ),
                ),
                steps=NEEDS_NONE,
            ),
        ),
    ),
)
