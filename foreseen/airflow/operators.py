"""An Airflow operator that runs `foreseen warm` as a task: a retry resumes where the task stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowException

from foreseen.errors import ForeseenError, SetupError
from foreseen.settings import WarmSettings
from foreseen.warm.checkpoint import Progress
from foreseen.warm.run.checks import share_of
from foreseen.warm.run.command import Job, Summary

LOG_SECONDS = 10.0


def cache_warm(model: str) -> Asset:
    """The asset that a run of `WarmOperator` updates: schedule a DAG on it, and it starts when the cache is warm."""
    return Asset(name=f"foreseen_warm_{model}", uri=f"x-foreseen://warm/{model}")


class WarmOperator(BaseOperator):  # type: ignore[misc] # Airflow is not installed where types are checked
    """Warms one model from files.

    files    files, globs, folders, URLs that fsspec knows
    model    the model that computes the answers
    options  what `foreseen warm` takes besides, by the flags' names with underscores: {"url": "http://proxy:8000"},
             {"data": "/srv/foreseen", "outputs": ["all"], "verify": "1%"}, …

    Returns the counts as a dictionary. Fails where more rows fail than `error_budget` allows, or where the run has to
    stop; a retry resumes from its checkpoint. Its outlet is `cache_warm(model)` unless outlets are given.
    """

    template_fields = ("files", "model", "options")

    def __init__(
        self, *, files: str | Sequence[str], model: str, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("outlets", [cache_warm(model)])
        super().__init__(**kwargs)
        self.files = [files] if isinstance(files, str) else list(files)
        self.model = model
        self.options = dict(options or {})

    def execute(self, context: Any) -> dict[str, Any]:
        """One run. Raises AirflowException in one line."""
        try:
            settings = settings_of(self.model, self.options)
            summary = Job(self.files, settings).go(_LogProgress(self.log))
        except (ForeseenError, SetupError) as error:
            raise AirflowException(f"foreseen: {error}") from None
        result: dict[str, Any] = msgspec.to_builtins(summary)
        self.log.info("foreseen: %s", result)
        if summary.failed > share_of(settings.error_budget) * summary.rows:
            raise AirflowException(_over_budget(summary))
        for asset in self.outlets:
            if isinstance(asset, Asset):
                context["outlet_events"][asset].extra = result
        return result


def settings_of(model: str, options: dict[str, Any]) -> WarmSettings:
    """Options as Airflow's JSON and templates hold them → settings. Raises SetupError for one that is not there."""
    known = {f.name: str(f.type) for f in fields(WarmSettings)}
    made: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise SetupError(f"options: there is no {name!r}; foreseen warm takes {', '.join(sorted(known))}")
        if isinstance(value, str) and "Path" in known[name]:
            value = Path(value)
        made[name] = tuple(value) if isinstance(value, list) else value
    return WarmSettings(**{"model": model, **made})


def _over_budget(summary: Summary) -> str:
    return (
        f"foreseen: {summary.failed} of {summary.rows} rows failed, the first: {summary.first_failure}; "
        f"all of them: {summary.rejects}"
    )


class _LogProgress:
    """Progress as lines of the task's log, one every ten seconds."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._rows: int | None = None
        self._next = 0.0

    def started(self, rows: int | None, done: Progress) -> None:
        self._rows, self._next = rows, time.monotonic() + LOG_SECONDS
        self._log.info("foreseen: %s of %s rows were done before", done.rows, rows or "an unknown number of")

    def moved(self, done: Progress) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOG_SECONDS
        said = f"{done.hit} hits, {done.computed} computed, {done.imported} imported, {done.failed} failed"
        self._log.info("foreseen: %s of %s rows: %s", done.rows, self._rows or "?", said)
