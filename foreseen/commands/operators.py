"""Commands for operators of a running system."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import orjson

from foreseen.commands.app import ORIGINS
from foreseen.logs import configure
from foreseen.settings import DoctorSettings, JobsSettings, UsageSettings

_DOCTOR, _JOBS, _USAGE = DoctorSettings(), JobsSettings(), UsageSettings()


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

    Ctrl-C ends it. Where no proxy answers, it ends with one line and status 1.

    Parameters
    ----------
    url
        The running proxy. Default: that of the last `foreseen up` in --data, else http://127.0.0.1:8000.
    data
        The data directory.
    interval
        Seconds between two scrapes.
    once
        Print one interval and end.
    json
        Print JSON for machines; with --once.
    config
        Settings from a TOML file.
    """
    from foreseen.operate import top as view
    from foreseen.operate.started import url_of, watcher_key

    url = url or url_of(data)
    key = watcher_key(url, data)
    if json or once:
        now = view.once(url, interval, key)
        print(orjson.dumps(now).decode()) if json else view.show(url, now)
    else:
        view.watch(url, interval, key)


def jobs(settings: JobsSettings = _JOBS) -> None:
    """Show the queue of jobs and its dead letters; retry or drop a dead letter."""
    from foreseen.operate.commands.jobs_command import answer

    print(answer(settings))


def usage(settings: UsageSettings = _USAGE) -> None:
    """Show what tenants used: requests, rows, hits, model seconds used and saved, by tenant and model.

    It is kept by the hour for 90 days, in the state store, of proxies with a keys file.
    """
    from foreseen.operate.commands.usage_command import answer

    print(answer(settings))


def doctor(settings: DoctorSettings = _DOCTOR) -> None:
    """Examine a running or configured system: one line per finding, with its fix.

    Flags describe the system; the default of each is that of the last `foreseen up` in --data.
    Ends with status 1 where something must be fixed. Changes nothing.
    """
    from foreseen.operate.started import as_started
    from foreseen.proxy.tools.doctor import examine

    configure("error", "doctor", settings.log_format)
    given = frozenset(ORIGINS.found)
    found = examine(as_started(settings, given), given)
    if settings.json:
        print(msgspec.json.encode(found).decode())
    else:
        print("\n".join(finding.line() for finding in found))
    sys.exit(1 if any(finding.grade == "must" for finding in found) else 0)


def dashboards(*, out: Path, runbook_base: str | None = None, config: Path | None = None) -> None:
    """Write the Grafana dashboards and the Prometheus rules to a folder.

    Parameters
    ----------
    out
        The folder; it gets `dashboards/*.json` and `rules/*.yml`.
    runbook_base
        Where your copy of the website (`make site`) is served: alerts link to its runbook in `runbook_url`. Default:
        the path of the runbook in the repository.
    config
        Settings from a TOML file.
    """
    from foreseen.operate.dashboards import write_dashboards

    for path in write_dashboards(out, runbook_base):
        print(path)
