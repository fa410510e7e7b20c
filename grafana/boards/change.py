"""Change: how a candidate's answers compare with those in force, and whether cached answers are the model's own."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import MODEL, quantile, rate

_SHADOW = "foreseen_shadow_rows_total"
_AUDIT = "foreseen_audit_rows_total"
_COMPARED = f'sum by (model) ({_SHADOW}{{{MODEL}, outcome=~"equal|close|changed"}})'
CHANGED_SHARE = f'sum by (model) ({_SHADOW}{{{MODEL}, outcome="changed"}}) / ({_COMPARED} > 0)'
_DIFFERENT = f'sum by (model) ({_AUDIT}{{{MODEL}, outcome="different"}})'
_AUDITED = f'sum by (model) ({_AUDIT}{{{MODEL}, outcome=~"equal|different"}})'
BOUND = f"(1 - 0.05 ^ (1 / ({_AUDITED} > 0))) and ({_DIFFERENT} == 0)"
"""One-sided Clopper-Pearson at 95 % where nothing differed."""


def _ms(side: str) -> str:
    """Mean compute time of a compared row, in seconds."""
    return f'sum by (model) (foreseen_shadow_compute_seconds_total{{{MODEL}, side="{side}"}}) / ({_COMPARED} > 0)'


CHANGE = (
    Row(
        "Handover (`foreseen models handover`)",
        (
            Panel(
                "Rows computed into the candidate's space",
                "Since the start, by how the two answers compare: equal, changed, failed.",
                "short",
                ((f"sum by (model, outcome) (foreseen_handover_rows_total{{{MODEL}}})", "{{model}} {{outcome}}"),),
                width=12,
            ),
            Panel(
                "Inputs that are kept",
                "What `--keep-hot-inputs` keeps in memory, of all workers: rows, and bytes.",
                "short",
                (("sum(foreseen_hot_input_rows)", "rows"), ("sum(foreseen_hot_input_bytes)", "bytes")),
                width=12,
            ),
        ),
    ),
    Row(
        "Shadow traffic (`--shadow`)",
        (
            Panel(
                "Shadow rows",
                "Live rows that the candidate was asked, too, by how its answer compares. `foreseen shadow` gives the "
                "interval.",
                "rowsps",
                ((rate(_SHADOW, "model, outcome"), "{{model}} {{outcome}}"),),
                "stacked",
            ),
            Panel(
                "Changed share",
                "Compared rows with another label, or a value beyond the tolerance, since the start.",
                "percentunit",
                ((CHANGED_SHARE, "{{model}}"),),
            ),
            Panel(
                "Workers that send rows",
                "0 once each has ended: its interval is narrow, its budget is spent, or a model has changed.",
                "short",
                ((f"sum by (model) (foreseen_shadow_running{{{MODEL}}})", "{{model}}"),),
            ),
            Panel(
                "Compute time of a row",
                "Mean of the compared rows since the start, in force and of the candidate.",
                "s",
                ((_ms("live"), "{{model}} in force"), (_ms("candidate"), "{{model}} candidate")),
                width=12,
            ),
            Panel(
                "Cosine distance, 99 %",
                "1 - cosine of the two answers, below which 99 % of the compared rows of the last minutes are.",
                "none",
                ((quantile(0.99, "foreseen_shadow_cosine_distance", "model"), "{{model}}"),),
                width=12,
                logarithmic=True,
            ),
        ),
    ),
    Row(
        "Canary (`--canary`)",
        (
            Panel(
                "Share of callers",
                "Callers that the candidate answers. `foreseen canary` changes it: 1 is promoted, 0 is aborted.",
                "percentunit",
                ((f"max by (model) (foreseen_canary_share{{{MODEL}}})", "{{model}}"),),
                most=1.0,
            ),
            Panel(
                "Requests by side",
                "Answered by the model in force (live) and by the candidate, by status.",
                "reqps",
                ((rate("foreseen_canary_requests_total", "model, side, code"), "{{model}} {{side}} {{code}}"),),
            ),
            Panel(
                "Latency by side, p99",
                "The candidate begins without cached answers.",
                "s",
                ((quantile(0.99, "foreseen_canary_request_duration_seconds", "model, side"), "{{model}} {{side}}"),),
            ),
        ),
    ),
    Row(
        "Audit of hits (`--audit`)",
        (
            Panel(
                "Audited hit rows",
                "Hits that were computed again, by outcome. `different`: the cached answer was not the model's.",
                "rowsps",
                ((rate(_AUDIT, "model, outcome"), "{{model}} {{outcome}}"),),
                "stacked",
            ),
            Panel(
                "At most this share differs",
                "Upper bound at 95 % confidence where no audited hit differed; else `foreseen audit` has it.",
                "percentunit",
                ((BOUND, "{{model}}"),),
                logarithmic=True,
            ),
            Panel(
                "Hits that differed",
                "Since the start. The entries were removed; `foreseen audit` lists the keys.",
                "short",
                ((_DIFFERENT, "{{model}}"),),
            ),
            Panel(
                "Distinct keys audited",
                "Since the start, of each worker, added up.",
                "short",
                ((f"sum by (model) (foreseen_audit_distinct_keys{{{MODEL}}})", "{{model}}"),),
                width=12,
            ),
            Panel(
                "Not repeatable",
                "1 where the model answered the same row in two ways, so that its hits cannot be audited.",
                "short",
                ((f"max by (model) (foreseen_audit_model_unrepeatable{{{MODEL}}})", "{{model}}"),),
                width=12,
            ),
        ),
    ),
)
