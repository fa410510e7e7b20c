"""Writes the Grafana dashboards and the Prometheus rules that travel with the package to a folder of the caller's."""

from __future__ import annotations

from pathlib import Path

from foreseen.errors import SetupError

FILES = Path(__file__).parent / "grafana_files"
"""`dashboards/*.json` and `rules/*.yml`: links into grafana/ in a checkout, real files in a wheel."""


def write_dashboards(out: Path) -> list[Path]:
    """Copy every file below `out`; the paths written. Raises SetupError where the folder cannot be written."""
    written = []
    for source in sorted([*FILES.glob("dashboards/*.json"), *FILES.glob("rules/*.yml")]):
        target = out / source.relative_to(FILES)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        except OSError as error:
            raise SetupError(f"--out {out}: {error.strerror or error}") from error
        written.append(target)
    return written
