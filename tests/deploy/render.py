"""Renders, lints and validates the chart; runs in an environment of its own (Helm's SDK, Kubernetes' schemas).

python render.py render CHART VALUES...      JSON on stdout: value file → objects
python render.py lint CHART VALUES...        messages of Helm's linter, and of the values' schema
python render.py validate VERSION < objects  what Kubernetes' schemas refuse, strictly
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml

NAMESPACE, RELEASE = "ml", "prod"
OWN_GROUPS = ("keda.sh/", "monitoring.coreos.com/", "serving.kserve.io/")
"""Groups that are no part of Kubernetes: other schemas check these."""


def render(chart: str, files: list[str]) -> dict[str, Any]:
    loaded = helm.Chart.load(chart)
    made = {}
    for file in files:
        values = yaml.safe_load(Path(file).read_text()) or {}
        loaded.validate_schema(loaded.merge_values(values))
        parts = loaded.render(values, name=RELEASE, namespace=NAMESPACE)
        texts = [text for path, text in parts.items() if not path.endswith("NOTES.txt")]
        made[Path(file).stem] = [one for text in texts for one in yaml.safe_load_all(text) if one]
    return made


def lint(chart: str, files: list[str]) -> dict[str, Any]:
    said = {}
    for file in files:
        report = helm.lint(chart, yaml.safe_load(Path(file).read_text()) or {}, strict=True, namespace=NAMESPACE)
        said[Path(file).stem] = report["errors"] + [m["error"] for m in report["messages"] if m["severity"] > 1]
    return said


def validate(version: str, objects: list[Any]) -> list[str]:
    refused = []
    for one in objects:
        if one["apiVersion"].startswith(OWN_GROUPS):
            continue
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = "/".join(map(str, error.path))
            refused.append(f"{one['kind']} {one['metadata']['name']}: {where}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            refused.append(f"{one['kind']}: {one['apiVersion']} has no such kind")
    return refused


def main() -> None:
    verb, first, *files = sys.argv[1:]
    try:
        if verb == "validate":
            made: Any = validate(first, json.load(sys.stdin))
        else:
            made = (render if verb == "render" else lint)(first, files)
    except helm.HelmError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
