"""Writes the docs' reference tables from the code: `make docs`. A test fails when they lag."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import get_args, get_type_hints

from aiohttp import web
from cyclopts import Parameter

from foreseen import errors
from foreseen.cli import app
from foreseen.inference.metrics import ModelMetrics
from foreseen.settings import NAMES, WITHOUT_ENVIRONMENT
from foreseen.settings.common import INTERNAL
from foreseen.settings.renamed import RENAMED
from foreseen.telemetry.exposition import CALLER_STATE, CHILD_STATE, FAR_STATE, QUEUE_STATE, WARM_STATE
from foreseen.telemetry.metrics import ProxyMetrics
from tests.make_model_toml import model_toml_page
from tests.openapi import application, operators, page

DOCS = Path(__file__).parent.parent / "docs"


def settings_page() -> str:
    """docs/settings.md"""
    lines = [
        "# Settings",
        "",
        "Every flag is also an environment variable and a key of the [configuration file](#the-configuration-file).",
        "A flag wins over the environment, that over the file, that over the default.",
        "Made from the code by `make docs`.",
        "",
        "Sizes (`…-bytes`) may be written `64MiB`, `1.5GiB`, `512M` (binary) or `500kB` (decimal), durations",
        "(`…-seconds`, `…-ms`) `500ms`, `90s`, `1h30m`, `7d`; a plain number is in the unit of the name. In the",
        "environment a setting that may be repeated takes several words, separated by commas or white space. A",
        "`FORESEEN_` name that is not a setting is named on stderr.",
        "",
        *FILE_SECTION,
        "",
        "## Old names",
        "",
        "Of the release before; each is taken with a warning, and the next release refuses it.",
        "",
        "| command | old name | name of now |",
        "| --- | --- | --- |",
        *_old_names(),
    ]
    for command, kind in NAMES.items():
        lines += ["", f"## `foreseen {command}`", "", *_TABLE]
        rare = []
        hints = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            found = next(p for p in get_args(hints[one.name])[1:] if isinstance(p, Parameter))
            if one.name in INTERNAL:
                continue
            into = lines if found.show is not False else rare
            into.append(_setting(command, one, found.help or ""))
        if rare:
            lines += ["", "Rarely changed, and not shown by `--help`:", "", *_TABLE, *rare]
    return "\n".join(lines) + "\n"


_TABLE = ("| flag | environment | default | what it does |", "| --- | --- | --- | --- |")
FILE_SECTION = """
## The configuration file

    # foreseen.toml
    near-bytes = "64MiB"
    model = ["minilm", "fingerprint"]

    [up]
    workers = 2
    far-bytes = "2GiB"

    [warm]
    redis = "redis://10.0.0.7:6379"

`foreseen COMMAND --config foreseen.toml`, or `FORESEEN_CONFIG`, for every command. A key is a flag without its dashes;
values are strings, numbers, `true`, `false`, or lists of these for settings that may be repeated, with the same sizes
and durations as flags. Keys at the top are for every command that has such a setting; a table `[COMMAND]` is for that
command alone, and wins. A key that is not a setting is an error that names near spellings. `config` itself, what
`foreseen purge` aims at, and the place of a request file can only be given on the command line.

`foreseen up` reads the top and `[up]`, and gives its processes their settings as flags: they read no file.
Who can read the file can read what is in it: give it mode 0600 where an address holds a password.

`foreseen config show [COMMAND] [FLAGS]` prints the settings in force and where each was given: `flag`, the environment
variable, the file, or `default`; with `--json` for machines. Passwords in addresses are left out.
""".strip().splitlines()


def _setting(command: str, one: Field[object], said: str) -> str:
    """One line of a table."""
    name = "–" if one.name in WITHOUT_ENVIRONMENT.get(command, ()) else f"`FORESEEN_{one.name.upper()}`"
    default = one.default if one.default is not MISSING else "required"
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)
    return f"| `--{one.name.replace('_', '-')}` | {name} | {f'`{shown}`' if shown else '–'} | {said} |"


def _now(new: str | None) -> str:
    return "none: it is a constant" if new is None else f"`--{new.replace('_', '-')}`"


def _old_names() -> list[str]:
    """The old names, each once for all commands that have it."""
    commands: dict[tuple[str, str | None], list[str]] = {}
    for command, table in RENAMED.items():
        for pair in table.items():
            commands.setdefault(pair, []).append(f"`{command}`")
    return [
        f"| {', '.join(several)} | `--{old.replace('_', '-')}` | {_now(new)} |"
        for (old, new), several in commands.items()
    ]


def metrics_page() -> str:
    """docs/metrics.md"""
    lines = [
        "# Metrics",
        "",
        "Times are in seconds, sizes in bytes. Label sets are closed: clients cannot create series. *Near* is the",
        "cache in each proxy worker's memory (in-process), *far* the one in Redis. A *flight* is a row being computed",
        "(single-flight). How to scrape, and what metrics cost: [operating](operating.md#metrics).",
        "Made from the code by `make docs`.",
    ]
    for title, registry in (("The proxy", ProxyMetrics().registry), ("The model process", ModelMetrics("m").registry)):
        lines += ["", f"## {title}", "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        for collector, names in registry._collector_to_names.items():
            family = next(iter(collector.describe()))
            labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ())) or "–"
            name = f"{family.name}_total" if family.type == "counter" else family.name
            said = re.sub(r"\s+", " ", family.documentation)
            assert names
            lines.append(f"| `{name}` | {family.type} | {labels} | {said} |")
        if title == "The proxy":
            lines += [f"| `{name}` | {kind} | – | {said} |" for name, kind, said in FAR_STATE]
            for name, kind, label, said in (*QUEUE_STATE, *CHILD_STATE):
                lines.append(f"| `{name}` | {kind} | {f'`{label}`' if label else '–'} | {said} |")
            for name, kind, several, said in (*WARM_STATE, *CALLER_STATE):
                lines.append(f"| `{name}` | {kind} | {', '.join(f'`{one}`' for one in several)} | {said} |")
    return "\n".join(lines) + "\n"


def all_errors(kind: type[errors.ForeseenError] = errors.ForeseenError) -> list[type[errors.ForeseenError]]:
    """Those of foreseen.errors; elsewhere they are kinds of these."""
    below = [deeper for one in kind.__subclasses__() for deeper in all_errors(one)]
    return [one for one in (kind, *below) if one.__module__.startswith(f"{errors.__name__}.")]


def errors_page() -> str:
    """docs/errors.md"""
    lines = [
        "# Errors",
        "",
        'Every error is `{"error": "…", "code": "…"}` under exactly `application/json`. The message names the field',
        "and never holds a value of an input. Codes are stable. Made from the code by `make docs`.",
        "",
        "| code | status | what happened | what to do |",
        "| --- | --- | --- | --- |",
    ]
    for one in sorted(all_errors(), key=lambda one: (one.status, one.code)):
        happened = " ".join((inspect.getdoc(one) or "").partition("\n\n")[0].split())
        lines.append(f"| `{one.code}` | {one.status} | {happened} | {one.fix} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """docs/cli.md: as `--help` says it; flags that are settings stand in docs/settings.md."""
    told = re.sub(r"(?m)^(foreseen(?: [a-z][a-z-]*)+) -m [\w.]+", r"\1", app.generate_docs(output_format="markdown"))
    _, *parts = re.split(r"(?m)^(?=##+ foreseen )", told)
    lines = [
        "# Commands",
        "",
        "The output of `foreseen COMMAND --help`. Flags that are also environment variables: [settings](settings.md).",
        "A command that fails prints its reason as one line on stderr. Status 1; 2 if the command line is wrong.",
        "Made from the code by `make docs`.",
        "",
    ]
    for part in parts:
        name = part.splitlines()[0].partition("foreseen ")[2]
        lines.append(_without_settings(part, name) if name in NAMES else part)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _without_settings(part: str, name: str) -> str:
    """A command's part without the flags that docs/settings.md lists."""
    flags = {f"--{one.name.replace('_', '-')}" for one in fields(NAMES[name])}
    kept = []
    for line in part.splitlines():
        found = re.match(r"\* `(?:[A-Z]+, )?(--[a-z-]+)", line)
        if found is None or found[1] not in flags:
            kept.append(line)
    text = "\n".join(kept).replace("**Parameters**:\n\n\n", "").rstrip()
    text = text.removesuffix("**Parameters**:").rstrip()
    return f"{text}\n\nFlags: [settings](settings.md#foreseen-{name}).\n"


def http_page() -> str:
    """docs/http.md"""
    lines = [
        "# Routes",
        "",
        "Every HTTP route. Headers, freshness and examples are in [for clients](clients.md), error codes in",
        "[errors](errors.md). With the form of requests and replies: [openapi.json](openapi.json).",
        "Made from the code by `make docs`.",
        "",
        "## For callers",
        "",
        "On `--host` and `--port`. If there is a keys file, with a tenant's key ([security](security.md)).",
        "",
        *_routes(application()),
        "",
        "## For operators",
        "",
        "On `DATA/run/admin.sock` or `--admin-port`; `Authorization: Bearer` has the content of `DATA/admin-token`.",
        "",
        *_routes(operators()),
    ]
    return "\n".join(lines) + "\n"


def _routes(application: web.Application) -> list[str]:
    lines = ["| route | what it does |", "| --- | --- |"]
    said: dict[tuple[str, str], str] = {}
    methods: dict[tuple[str, str], list[str]] = {}
    for route in application.router.routes():
        if route.method == "HEAD" or route.resource is None:
            continue
        path = re.sub(r"/versions/\{version[^}]*\}", "[/versions/{version}]", route.resource.canonical)
        key = (route.handler.__name__, path)
        said[key] = " ".join((inspect.getdoc(route.handler) or "").split())
        methods.setdefault(key, []).append(route.method)
    versioned = {(name, path.replace("[/versions/{version}]", "")) for name, path in said if "[/versions" in path}
    for (name, path), text in said.items():
        if (name, path) not in versioned:
            lines.append(f"| {', '.join(f'`{one}`' for one in methods[name, path])} `{path}` | {text} |")
    return lines


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    (DOCS / "http.md").write_text(http_page())
    (DOCS / "errors.md").write_text(errors_page())
    (DOCS / "cli.md").write_text(cli_page())
    (DOCS / "settings.md").write_text(settings_page())
    (DOCS / "metrics.md").write_text(metrics_page())
    (DOCS / "model-toml.md").write_text(model_toml_page())
    (DOCS / "openapi.json").write_text(page())
