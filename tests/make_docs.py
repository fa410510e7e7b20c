"""Writes the docs' reference tables from the code: `make docs`. A test fails when they lag."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from foreseen.exposition import FAR_STATE
from foreseen.metrics import ProxyMetrics
from foreseen.settings import NAMES, PURGE_TARGETS
from inference.metrics import ModelMetrics
from tests.openapi import page

DOCS = Path(__file__).parent.parent / "docs"


def settings_page() -> str:
    """docs/settings.md"""
    lines = [
        "# Settings",
        "",
        "Every flag is also an environment variable; a flag wins. Made from the code by `make docs`.",
    ]
    for command, kind in NAMES.items():
        lines += [
            "",
            f"## `foreseen {command}`",
            "",
            "| flag | environment | default | what it does |",
            "| --- | --- | --- | --- |",
        ]
        hints = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            hint = hints[one.name]
            helps = (
                [p.help for p in get_args(hint)[1:] if isinstance(p, Parameter)]
                if get_origin(hint) is Annotated
                else []
            )
            none = command == "purge" and one.name in PURGE_TARGETS
            name = "–" if none else f"`FORESEEN_{one.name.upper()}`"
            default = one.default if "MISSING" not in type(one.default).__name__ else "required"
            shown = (
                " ".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)
            )
            flag = one.name.replace("_", "-")
            lines.append(f"| `--{flag}` | {name} | {f'`{shown}`' if shown else '–'} | {helps[0]} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """docs/metrics.md"""
    lines = ["# Metrics", "", "Seconds, bytes, `_total`; closed label sets. Made from the code by `make docs`."]
    for title, registry in (("The proxy", ProxyMetrics().registry), ("The model process", ModelMetrics("m").registry)):
        lines += ["", f"## {title}", "", "| metric | type | labels | what it says |", "| --- | --- | --- | --- |"]
        for collector, names in registry._collector_to_names.items():
            family = next(iter(collector.describe()))
            labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ())) or "–"
            name = f"{family.name}_total" if family.type == "counter" else family.name
            said = re.sub(r"\s+", " ", family.documentation)
            assert names
            lines.append(f"| `{name}` | {family.type} | {labels} | {said} |")
        if title == "The proxy":
            lines += [f"| `{name}` | {kind} | – | {said} |" for name, kind, said in FAR_STATE]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    (DOCS / "settings.md").write_text(settings_page())
    (DOCS / "metrics.md").write_text(metrics_page())
    (DOCS / "openapi.json").write_text(page())
