"""deploy/kserve: read by KServe's own Python models, and every command by the program's command line."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from foreseen.cli import app
from foreseen.settings.commands import settings_of
from foreseen.settings.kserve import transformer_flags
from tests.deploy.checks import ROOT

FILES = sorted((ROOT / "deploy/kserve").rglob("*.yaml"))
APPENDED = [
    "--model_name",
    "bge-m3",
    "--predictor_host",
    "bge-m3-predictor.ml",
    "--http_port",
    "8080",
    "--workers",
    "4",
]
"""What KServe appends to the command of a transformer (pkg/apis/serving/v1beta1/transformer_custom.go)."""


def parsed(files: list[Path]) -> dict[str, Any]:
    command = [str(ROOT / ".venv-kserve/bin/python"), str(Path(__file__).with_name("kserve_models.py"))]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    for document in found.values():  # the models fill in an empty name
        model = document["spec"].get("predictor", {}).get("model", {})
        if model.get("name") == "":
            del model["name"]
    return found


def ours(document: Any) -> Iterator[tuple[str, Any]]:
    """Where our containers stand, and they."""
    spec = document["spec"]
    for part in (spec, spec.get("predictor", {}), spec.get("transformer", {})):
        for container in part.get("containers", ()):
            if container["image"].startswith("foreseen/"):
                yield ("transformer" if part is spec.get("transformer") else "pod"), container


def test_kserves_models_read_every_file_whole() -> None:
    found = parsed(FILES)
    assert len(found) == len(FILES) >= 6
    for path in FILES:
        assert found[str(path)] == yaml.safe_load(path.read_text()), path


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("storageUri:", "storageURL:"),
        ("modelFormat:", "modelFormats:"),
        ("transformer:\n", "transformers:\n"),
        ("volumeMounts:", "volumeMount:"),
        ("protocolVersion:", "protocolversion:"),
    ],
)
def test_a_misspelt_field_does_not_come_back(tmp_path: Path, right: str, wrong: str) -> None:
    path = tmp_path / "wrong.yaml"
    text = (ROOT / "deploy/kserve/transformer.yaml").read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    if right == "modelFormat:":
        with pytest.raises(AssertionError, match="must not be `None`"):
            parsed([path])
    else:
        assert parsed([path])[str(path)] != yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_is_taken(path: Path) -> None:
    """With what KServe appends; ports and paths are those that the rest of the file names."""
    document = yaml.safe_load(path.read_text())
    found = list(ours(document))
    assert found
    for place, container in found:
        words = container["args"]
        if container.get("command") == ["sh", "-ec"]:
            words = shlex.split(words[0].rpartition("exec foreseen ")[2].replace("$MODEL", "m"))
        if place == "transformer":
            assert container["name"] == "transformer-container"
            words = [*words, *APPENDED]
        words = [words[0], *transformer_flags(words[0], words[1:])]
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        settings = next(iter(bound.arguments.values()))
        assert (settings.host, settings.port) == ("0.0.0.0", 8080)
        if words[0] == "proxy":
            assert len(settings.upstream) == len(settings.model) == 1
        names = {f"FORESEEN_{name.upper()}" for name in settings_of(words[0])} | {"HOME", "MODEL"}
        assert {one["name"] for one in container["env"]} <= names
        assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_collocated_transformer_has_the_names_that_kserve_asks_for() -> None:
    containers = yaml.safe_load((ROOT / "deploy/kserve/collocated.yaml").read_text())["spec"]["predictor"]["containers"]
    assert [one["name"] for one in containers] == ["kserve-container", "transformer-container"]
    assert "--http-port=8081" in containers[0]["args"]
    assert "--predictor_host=localhost:8081" in containers[1]["args"]
