"""Commands on entries of the cache: fill it, purge it, show keys."""

from __future__ import annotations

import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import msgspec
import orjson
from cyclopts import Parameter

from foreseen.errors import SetupError
from foreseen.logs import configure, fail
from foreseen.settings import CanarySettings, KeySettings, PurgeSettings, WarmSettings

RequestFile = Annotated[Path, Parameter(allow_leading_hyphen=True, env_var=())]
_PURGE, _CANARY = PurgeSettings(), CanarySettings()


def warm(*files: Annotated[str, Parameter(env_var=())], settings: WarmSettings) -> None:
    """Fill the cache from files: compute the rows that are missing, or import what a batch run has computed.

    JSONL (a V2 request or a plain object a line), CSV, Parquet, Arrow, NPZ. Running the same command again resumes an
    interrupted run. Ends with status 1 where more rows failed than the error budget allows.

    Parameters
    ----------
    files
        Files, globs, folders, or URLs that fsspec knows.
    """
    try:
        from foreseen.warm.run.checks import share_of
        from foreseen.warm.run.command import Job, stand_back
        from foreseen.warm.run.console import bar, forecast_table, summary_table
    except ModuleNotFoundError as error:
        raise SetupError(f"{error.name} is not installed; install foreseen[warm], see docs/install.md") from None
    from rich.console import Console

    configure("error", "warm")
    stand_back(settings)
    job = Job(files, settings)
    if settings.dry_run:
        forecast = job.dry()
        if settings.json:
            print(msgspec.json.encode(forecast).decode())
        else:
            Console().print(forecast_table(forecast))
        return
    with bar(quiet=settings.json) as watcher:
        summary = job.go(watcher, watcher)
    if settings.json:
        print(msgspec.json.encode(summary).decode())
    else:
        Console().print(summary_table(summary))
    if summary.failed > share_of(settings.error_budget) * summary.rows:
        failed = f"{summary.failed} of {summary.rows} rows failed, the first: {summary.first_failure}"
        fail(f"{failed}; all of them: {summary.rejects}", settings.log_format, "warm")
        sys.exit(1)


def purge(settings: PurgeSettings = _PURGE) -> None:
    """Purge a model, a digest, a tenant, one key or everything, and wait until every worker has confirmed.

    If some workers do not confirm, it names them and ends with status 1.
    """
    from foreseen.operate.commands.purge_command import purge as run

    print(run(settings))


def key(file: RequestFile, /, *, settings: KeySettings) -> None:
    """Print the canonical frame and the key of every row of a request file.

    Parameters
    ----------
    file
        The body of a request as a client would send it; '-' reads stdin.
    """
    from foreseen.operate.started import read_started
    from foreseen.proxy.tools.offline import keyed

    rows = keyed(file, settings)
    if settings.tenant is None and "keys_file" in (read_started(settings.data) or {}):
        print("of callers without a tenant; a tenant's rows have other keys: --tenant NAME", file=sys.stderr)
    if settings.json:
        print(orjson.dumps([{"key": row.key.hex(), "frame": row.frame.shown()} for row in rows]).decode())
        return
    for number, row in enumerate(rows):
        print(f"row {number}  key {row.key.hex()}")
        print(f"  space       {row.space.scope} / {row.space.model} / {row.space.digest}")
        print(f"  parameters  {row.frame.parameters or 'none'}")
        for one in row.frame.inputs:
            shown = one.shown()
            more = f" … {shown['more']} more" if "more" in shown else ""
            print(f"  {one.name}  {one.datatype} {list(one.shape)}  {shown['data']}{more}")


def explain(first: RequestFile, second: RequestFile, /, *, settings: KeySettings) -> None:
    """Report, row by row, whether two requests share an entry, and if not, which field differs.

    Status 0 means that they share all entries, 1 that they do not.

    Parameters
    ----------
    first
        The body of a request.
    second
        The body of another.
    """
    from foreseen.proxy.tools.offline import compared, keyed

    rows = list(zip_longest(keyed(first, settings), keyed(second, settings)))
    lacking = ["one request has fewer rows"]
    differences = [compared(one, other) if one and other else lacking for one, other in rows]
    if settings.json:
        print(orjson.dumps([{"share": not differ, "differ": differ} for differ in differences]).decode())
    else:
        for number, differ in enumerate(differences):
            print(f"row {number}: {'two entries; ' + '; '.join(differ) if differ else 'one entry'}")
    sys.exit(1 if any(differences) else 0)


def observed(
    *, url: str | None = None, data: Path = Path("data"), json: bool = False, config: Path | None = None
) -> None:
    """Report what the cache would have done for models that run under --observe.

    Parameters
    ----------
    url
        The running proxy. Default: that of the last `foreseen up` in --data, else http://127.0.0.1:8000.
    data
        The data directory.
    json
        Print JSON for machines.
    config
        Settings from a TOML file.
    """
    from foreseen.operate.commands.observed_command import read, table
    from foreseen.operate.started import url_of, watcher_key

    url = url or url_of(data)
    summary = read(url, watcher_key(url, data))
    print(orjson.dumps(summary).decode() if json else table(summary))


def audit(*, url: str | None = None, data: Path = Path("data"), json: bool = False, config: Path | None = None) -> None:
    """Say how many audited hits differ from the model's own answers, with a bound, of a proxy under --audit.

    Exit status 1 where one differs.

    Parameters
    ----------
    url
        The running proxy. Default: where `foreseen up` in --data was started last, else http://127.0.0.1:8000.
    data
        The data directory; the keys that differ are read from it.
    json
        Print JSON for machines.
    config
        Settings from a TOML file.
    """
    from foreseen.operate.commands.audit_command import lines, read
    from foreseen.operate.started import url_of

    found = read(url or url_of(data), data)
    print(orjson.dumps(found).decode() if json else lines(found))
    sys.exit(1 if any(one["different"] for one in found.values()) else 0)


def shadow(
    *, url: str | None = None, data: Path = Path("data"), json: bool = False, config: Path | None = None
) -> None:  # fmt: skip
    """Say how the candidate's answers to live rows compare with those in force, of a proxy under --shadow.

    Parameters
    ----------
    url
        The running proxy. Default: where `foreseen up` in --data was started last, else http://127.0.0.1:8000.
    data
        The data directory.
    json
        Print JSON for machines.
    config
        Settings from a TOML file.
    """
    from foreseen.operate.commands.shadow_command import lines, read
    from foreseen.operate.started import url_of

    found = read(url or url_of(data))
    print(orjson.dumps(found).decode() if json else lines(found))


def canary(settings: CanarySettings = _CANARY) -> None:
    """Say how a candidate answers the callers it was given, of a proxy under --canary; or change how many these are."""
    from foreseen.operate.commands.canary_command import change, lines, read
    from foreseen.operate.started import url_of

    changed = change(settings)
    if changed is not None:
        said = f"{changed['model']}: the candidate answers {changed['share']:.4g} of callers, was {changed['was']:.4g}"
        print(orjson.dumps(changed).decode() if settings.json else said)
        return
    found = read(settings.url or url_of(settings.data))
    print(orjson.dumps(found).decode() if settings.json else lines(found))
