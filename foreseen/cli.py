"""The command `foreseen`: the only place that reads the environment and that ends the process with a status."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import msgspec
import orjson
from cyclopts import App, CycloptsError, Parameter

from foreseen.command_line import Units, foreign, misspelt, split
from foreseen.errors import ForeseenError, SetupError
from foreseen.logs import Format, configure, default_format, fail
from foreseen.settings import (
    PURGE_TARGETS,
    DoctorSettings,
    InferenceSettings,
    JobsSettings,
    KeySettings,
    ProxySettings,
    PurgeSettings,
    UpSettings,
    WarmSettings,
    WorkerSettings,
)
from foreseen.settings.commands import all_settings, settings_of
from foreseen.settings.renamed import take_old_names
from foreseen.settings.sources import FromFile, Origins

_ORIGINS = Origins()

app = App(
    name="foreseen",
    help="A caching prediction proxy: ask once, the model answers; ask again, the cache does.",
    version=version("foreseen"),
    config=(
        cyclopts.config.Env("FORESEEN_", command=False),
        FromFile(lambda text: fail(text, _format(_command()), _command())),
        Units(),
        _ORIGINS,
    ),
    default_parameter=Parameter(env_var_split=split, negative_iterable=()),
)
app.command("foreseen.models.commands:app", name="models")
config_app = App(name="config", help="Look at settings.", config=())
app.command(config_app)

RequestFile = Annotated[Path, Parameter(allow_leading_hyphen=True, env_var=())]
_UP, _PROXY, _DOCTOR = UpSettings(), ProxySettings(), DoctorSettings()
_PURGE, _WORKER, _JOBS = PurgeSettings(), WorkerSettings(), JobsSettings()


@app.command
def up(settings: UpSettings = _UP) -> None:
    """Start everything on this machine: Valkey, one process per model and the proxy.

    Builds what is not built, prints "ready http://HOST:PORT" when a real prediction has gone through, supervises,
    and on Ctrl-C or SIGTERM stops all of it.
    """
    from foreseen.operate.up import run

    configure(settings.log_level, "up", settings.log_format)
    for name in settings_of("up") - _OF_JOB_WORKERS:  # what it starts gets them as flags, and must not see others
        os.environ.pop(f"FORESEEN_{name.upper()}", None)
    sys.exit(run(settings))


@app.command
def proxy(settings: ProxySettings = _PROXY) -> None:
    """Run one proxy process, in front of model processes that run already."""
    from foreseen.proxy.app import run

    configure(settings.log_level, "proxy", settings.log_format)
    run(settings)


@app.command
def worker(settings: WorkerSettings = _WORKER) -> None:
    """Run one worker on the queue of jobs, in front of model processes that run already."""
    from foreseen.proxy.worker_app import run

    configure(settings.log_level, "worker", settings.log_format)
    run(settings)


@app.command
def jobs(settings: JobsSettings = _JOBS) -> None:
    """Show the queue of jobs and its dead letters; put a dead letter back, or drop it."""
    from foreseen.operate.commands.jobs_command import answer

    print(answer(settings))


@app.command
def inference(settings: InferenceSettings) -> None:
    """Run one model's own process: a V2 server over ONNX Runtime."""
    from foreseen.inference.app import serve

    configure(settings.log_level, f"inference:{settings.model}", settings.log_format)
    serve(settings)


@app.command
def key(file: RequestFile, /, *, settings: KeySettings) -> None:
    """Print the canonical frame and the key of every row of a request file.

    Parameters
    ----------
    file
        The body of a request as a client would send it; '-' reads stdin.
    """
    from foreseen.proxy.tools.offline import keyed

    rows = keyed(file, settings)
    if settings.json:
        print(orjson.dumps([{"key": row.key.hex(), "frame": row.frame.shown()} for row in rows]).decode())
        return
    for number, row in enumerate(rows):
        print(f"row {number}  key {row.key.hex()}")
        print(f"  space       public / {row.space.model} / {row.space.digest}")
        print(f"  parameters  {row.frame.parameters or 'none'}")
        for one in row.frame.inputs:
            shown = one.shown()
            more = f" … {shown['more']} more" if "more" in shown else ""
            print(f"  {one.name}  {one.datatype} {list(one.shape)}  {shown['data']}{more}")


@app.command
def purge(settings: PurgeSettings = _PURGE) -> None:
    """Purge a model, a digest, one key or everything; acknowledged when every worker has confirmed.

    Ends with status 1 where that is not so, naming the workers that have not.
    """
    from foreseen.operate.commands.purge_command import purge as run

    print(run(settings))


@app.command
def explain(first: RequestFile, second: RequestFile, /, *, settings: KeySettings) -> None:
    """Say for two requests whether they share an entry, row by row, and if not, which field differs.

    Ends with status 0 where they share all entries, 1 where not.

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


@app.command
def observed(
    *, url: str | None = None, data: Path = Path("data"), json: bool = False, config: Path | None = None
) -> None:
    """Say what the cache would have done for models that run under --observe.

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
    from foreseen.operate.commands.observed_command import read, table
    from foreseen.operate.started import url_of

    summary = read(url or url_of(data))
    print(orjson.dumps(summary).decode() if json else table(summary))


@app.command
def warm(*files: Annotated[str, Parameter(env_var=())], settings: WarmSettings) -> None:
    """Fill the cache from files: compute the rows that are missing, or import what a batch run has computed.

    JSONL (a V2 request or a plain object a line), CSV, Parquet, Arrow, NPZ; the same command again goes on where a
    killed one stopped. Ends with status 1 where more rows failed than the error budget allows.

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


@app.command
def doctor(settings: DoctorSettings = _DOCTOR) -> None:
    """Examine a running or configured system: one line per finding, with its fix.

    Flags say how it runs; what is not given is what `foreseen up` in --data was started with last.
    Ends with status 1 where something must be fixed. Looks and changes nothing.
    """
    from foreseen.operate.started import as_started
    from foreseen.proxy.tools.doctor import examine

    configure("error", "doctor", settings.log_format)
    given = frozenset(_ORIGINS.found)
    found = examine(as_started(settings, given), given)
    if settings.json:
        print(msgspec.json.encode(found).decode())
    else:
        print("\n".join(finding.line() for finding in found))
    sys.exit(1 if any(finding.grade == "must" for finding in found) else 0)


@app.command
def top(
    *,
    url: str | None = None,
    data: Path = Path("data"),
    interval: float = 1.0,
    once: bool = False,
    json: bool = False,
    config: Path | None = None,
) -> None:
    """Show what a running proxy does: requests, hit ratio, latency of hits and misses, models, store, saved compute.

    Ctrl-C ends it. Where no proxy answers it says so in one line and ends with status 1.

    Parameters
    ----------
    url
        The running proxy. Default: where `foreseen up` in --data was started last, else http://127.0.0.1:8000.
    data
        The data directory.
    interval
        Seconds between two looks.
    once
        Look once, over one interval, and end.
    json
        Print JSON for machines; with --once.
    config
        Settings from a TOML file.
    """
    from foreseen.operate import top as view
    from foreseen.operate.started import url_of

    url = url or url_of(data)
    if json or once:
        now = view.once(url, interval)
        print(orjson.dumps(now).decode()) if json else view.show(url, now)
    else:
        view.watch(url, interval)


@app.command
def dashboards(*, out: Path, config: Path | None = None) -> None:
    """Write the Grafana dashboards and the Prometheus rules to a folder.

    Parameters
    ----------
    out
        The folder; it gets `dashboards/*.json` and `rules/*.yml`.
    config
        Settings from a TOML file.
    """
    from foreseen.operate.dashboards import write_dashboards

    for path in write_dashboards(out):
        print(path)


@config_app.command
def show(
    command: Annotated[str, Parameter(env_var=())] = "up",
    /,
    *flags: Annotated[str, Parameter(allow_leading_hyphen=True, env_var=())],
    json: bool = False,
) -> None:
    """Print the settings of a command as they are in force, and where each was given: flag, environment, file, default.

    Parameters
    ----------
    command
        The command.
    flags
        Its flags, as they would be given to it.
    json
        Print JSON for machines.
    """
    from foreseen.operate.commands.config_command import show as shown_settings

    def parse(words: list[str]) -> Mapping[str, Any]:
        return app.parse_args(words, exit_on_error=False, print_error=False)[1].arguments

    print(shown_settings(command, flags, parse, _ORIGINS, lambda text: fail(text, None, "config"), json=json))


_OF_JOB_WORKERS = frozenset(("host",))
"""Where their /metrics listen is said by the environment of `up` alone: its flag is the proxies'."""
SERVERS = ("up", "proxy", "worker", "inference")
_BROKEN_PIPE = 128 + 13
"""What a shell says of a program that SIGPIPE has ended."""


def main() -> None:
    """Run a command. What is not as it must be is one line on stderr that says what to do, and status 1."""
    command = _command()
    if command == "purge":
        for name in PURGE_TARGETS:
            os.environ.pop(f"FORESEEN_{name.upper()}", None)
    for name in foreign(os.environ):
        del os.environ[name]
    old = take_old_names(sys.argv, os.environ)
    form = _format(command)
    for warning in (*old, *misspelt(os.environ, all_settings())):
        fail(warning, form, command)
    try:
        try:
            app(exit_on_error=False, print_error=False)
        finally:
            sys.stdout.flush()  # here, where a reader that has left is no traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(_BROKEN_PIPE)
    except CycloptsError as error:
        fail(f"{' '.join(str(error).split())} See --help.", form, command)
        sys.exit(2)
    except (SetupError, ForeseenError) as error:
        fail(str(error), form, command)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}; give a folder that this user can use", form, command)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _command() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else ""


def _format(command: str) -> Format | None:
    """How this command writes to stderr, before its flags are parsed: they may be what is wrong."""
    words = sys.argv[1:]
    given = [word.partition("=")[2] for word in words if word.startswith("--log-format=")]
    given += [after for word, after in pairwise(words) if word == "--log-format"]
    said = (given or [os.environ.get("FORESEEN_LOG_FORMAT", "")])[-1]
    if said in ("json", "text"):
        return "json" if said == "json" else "text"
    return default_format() if command in SERVERS else None


if __name__ == "__main__":
    main()
