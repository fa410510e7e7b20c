"""Writes the Grafana dashboards and the Prometheus rules that travel with the package to a folder of the caller's."""

from __future__ import annotations

import re
from pathlib import Path

from foreseen.errors import SetupError

FILES = Path(__file__).parent / "grafana_files"
"""`dashboards/*.json` and `rules/*.yml`: links into grafana/ in a checkout, real files in a wheel."""
RUNBOOK = "docs/runbook.md#"
"""How the alerts of the package name their runbook sections: by the file in the repository."""
_BASE = re.compile(r"https?://[^\s\"'#]+")


def write_dashboards(out: Path, runbook_base: str | None = None) -> list[Path]:
    """Copy every file below `out`; the paths written. `runbook_base`: where the website is served, for `runbook_url`.

    Raises SetupError where the folder cannot be written or the base is no http(s) URL.
    """
    if runbook_base is not None and not _BASE.fullmatch(runbook_base):
        raise SetupError(f"--runbook-base {runbook_base}: must be https://HOST/PATH, where the website is served")
    written = []
    for source in sorted([*FILES.glob("dashboards/*.json"), *FILES.glob("rules/*.yml")]):
        target = out / source.relative_to(FILES)
        text = source.read_text()
        if runbook_base is not None:
            text = text.replace(f"runbook_url: {RUNBOOK}", f"runbook_url: {runbook_base.rstrip('/')}/runbook.html#")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        except OSError as error:
            raise SetupError(f"--out {out}: {error.strerror or error}") from error
        written.append(target)
    return written
