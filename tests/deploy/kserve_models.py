"""Reads KServe's objects with KServe's own Python models, in an environment of its own.

    python kserve_models.py FILE...    JSON on stdout: what each file's object comes back as

The models leave out what they do not know, so an object that does not come back as it was has a mistake in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import kserve
import yaml
from kubernetes import client

KINDS = {"InferenceService": "V1beta1InferenceService", "ClusterServingRuntime": "V1alpha1ClusterServingRuntime"}


class _Reply:
    """What the client's deserializer takes."""

    def __init__(self, data: str) -> None:
        self.data = data


def main() -> None:
    api = client.ApiClient()
    known = {name: getattr(kserve, name) for name in dir(kserve) if name.startswith("V1")}
    client.models.__dict__.update(known)  # the deserializer looks names up there
    made = {}
    for file in sys.argv[1:]:
        document = yaml.safe_load(Path(file).read_text())
        kind = KINDS[document["kind"]]
        made[file] = api.sanitize_for_serialization(api.deserialize(_Reply(json.dumps(document)), kind))
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
