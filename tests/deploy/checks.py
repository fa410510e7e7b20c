"""What is checked of rendered objects beyond the schemas: commands, environment, probes, ports, volumes, selectors,
metrics. Each check raises AssertionError, so a chart with a mistake in it fails."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import promql_parser

from foreseen.cli import app
from foreseen.settings.commands import settings_of
from tests.openapi import application, routes
from tests.project.test_dashboards import metrics, selected

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "foreseen"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
PYTHON, MODULES = ROOT / ".venv-deploy/bin/python", ROOT / "build/deploy"
KUBERNETES = ("1.31.0", "1.37.0")
LISTS = frozenset(
    ("--model", "--webhook-allow", "--cors-origin", "--upstream", "--brokers", "--allow-reply-topic"),
)
OTEL = frozenset(("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"))
KEDA_PROMETHEUS = frozenset(("serverAddress", "query", "threshold", "activationThreshold"))
"""Fields of KEDA's Prometheus scaler that the chart uses: its schema takes any."""
Object = Mapping[str, Any]


def rendered(chart: Path, files: Sequence[Path]) -> dict[str, list[Object]]:
    return _run(["render", str(chart), *map(str, files)])


def linted(chart: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    return _run(["lint", str(chart), *map(str, files)])


def _run(words: Sequence[str], given: str = "") -> Any:
    command = [str(PYTHON), str(Path(__file__).with_name("render.py")), *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check_schemas(objects: Sequence[Object], versions: Sequence[str] = KUBERNETES) -> None:
    """Kubernetes' own, strictly; those of KEDA and the Prometheus operator, and the types of their fields."""
    for version in versions:
        assert _run(["validate", version], json.dumps(objects)) == []
    command = ["node", str(Path(__file__).with_name("custom.mjs")), str(MODULES)]
    done = subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Name, labels and spec of every pod template."""
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet"):
            template = one["spec"]["template"]
            selector = one["spec"]["selector"]["matchLabels"]
            assert selector.items() <= template["metadata"]["labels"].items(), one["metadata"]["name"]
            yield one["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def commands(spec: Object) -> Iterator[tuple[Object, list[str]]]:
    """Containers of ours, with their command lines."""
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        if container["name"] == "valkey":
            continue
        if container.get("command") == ["sh", "-ec"]:
            for part in container["args"][0].split("&&"):
                words = shlex.split(part)
                assert words[0] == "foreseen"
                yield container, words[1:]
        else:
            yield container, container["args"]


def check_commands(objects: Sequence[Object]) -> None:
    """Every flag and value is taken by the program's own command line, and every variable is one that it reads."""
    for name, _, spec in pods(objects):
        for container, words in commands(spec):
            app.parse_args(words, exit_on_error=False, print_error=False)
            flags = [word.partition("=")[0] for word in words if word.startswith("--")]
            repeated = {flag for flag in flags if flags.count(flag) > 1}
            assert repeated <= {
                "--model",
                "--webhook-allow",
                "--cors-origin",
                "--upstream",
                "--brokers",
                "--allow-reply-topic",
            }, (name, repeated)
            command = words[0]
            known = {f"FORESEEN_{setting.upper()}" for setting in settings_of(command)}
            for variable in container.get("env", ()):
                assert variable["name"] in known | OTEL | {"HOME"}, (name, variable)


def check_pods(objects: Sequence[Object]) -> None:
    """User, read-only root, no token, volumes that exist, probes that are routes of named ports, a grace period."""
    paths = {path for path, method in routes(application()) if method == "GET"}
    for name, _, spec in pods(objects):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in spec.get("volumes", ())} | {"state"}
        used = set()
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"]["memory"], name
            mounts = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            assert len(mounts) == len(set(mounts)), name
            used |= {mount["name"] for mount in container.get("volumeMounts", ())}
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                asked = container.get(probe, {}).get("httpGet")
                if asked is not None:
                    assert asked["path"] in paths, (name, asked)
                    assert asked["port"] in ports, (name, asked)
            files = [word.partition("=")[2] for word in container.get("args", ()) if "=/run/foreseen/" in word]
            assert all(any(file.startswith(f"{mount}/") for mount in mounts) for file in files), (name, files)
        assert used == volumes - {"state"} | (used & {"state"}), (name, used ^ volumes)
        for container, words in commands(spec):
            drain = [float(word.partition("=")[2]) for word in words if word.startswith("--drain-seconds=")]
            if drain:
                assert spec["terminationGracePeriodSeconds"] > drain[0] + 5, container["name"]


def check_references(objects: Sequence[Object]) -> None:
    """Services, budgets, policies, monitors and scalers select what is there; proxies ask services that exist."""
    labels = [(found, spec) for _, found, spec in pods(objects)]
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    assert len(names) == len(objects), "two objects of one name"
    services = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Service"}
    for one in objects:
        spec, kind = one.get("spec", {}), one["kind"]
        if kind == "Service":
            chosen = [pod for found, pod in labels if spec["selector"].items() <= found.items()]
            assert chosen, one["metadata"]["name"]
            ports = {port["name"] for pod in chosen for box in pod["containers"] for port in box.get("ports", ())}
            assert {port["targetPort"] for port in spec["ports"]} <= ports, one["metadata"]["name"]
        elif kind in ("ScaledObject", "HorizontalPodAutoscaler"):
            target = spec["scaleTargetRef"]
            assert (target["kind"], target["name"]) in names
            owner = next(o for o in objects if o["kind"] == target["kind"] and o["metadata"]["name"] == target["name"])
            assert "replicas" not in owner["spec"], "two that decide"
        elif kind == "PodDisruptionBudget":
            assert any(spec["selector"]["matchLabels"].items() <= found.items() for found, _ in labels)
        elif kind == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            chosen = [s for s in services.values() if wanted <= s["metadata"]["labels"].items()]
            assert chosen, one["metadata"]["name"]
            assert all(
                {e["port"] for e in spec["endpoints"]} <= {p["name"] for p in s["spec"]["ports"]} for s in chosen
            )
    for _, _, spec in pods(objects):
        for _, words in commands(spec):
            for word in words:
                host = re.search(r"=(?:[\w.-]+=)?(?:http|redis)://(prod-[\w-]+):(\d+)", word)
                if host is not None:
                    assert int(host[2]) in {port["port"] for port in services[host[1]]["spec"]["ports"]}, word


def check_metrics(objects: Sequence[Object]) -> None:
    """Every metric that a trigger or rule names exists, with the labels that it selects by."""
    known = metrics()
    for one in objects:
        for query in _queries(one):
            parsed = promql_parser.parse(query)
            assert selected(parsed) <= known | _recorded(objects), query
        if one["kind"] == "ScaledObject":
            for trigger in one["spec"]["triggers"]:
                assert trigger["metadata"].keys() <= KEDA_PROMETHEUS, trigger
                assert {"serverAddress", "query", "threshold"} <= trigger["metadata"].keys(), trigger
                labels = set(re.findall(r"(\w+)=\"", trigger["metadata"]["query"]))
                assert labels <= {"model", "namespace", "result"}, trigger


def _queries(one: Object) -> Iterator[str]:
    if one["kind"] == "ScaledObject":
        yield from (trigger["metadata"]["query"] for trigger in one["spec"]["triggers"])
    if one["kind"] == "PrometheusRule":
        yield from (rule["expr"] for group in one["spec"]["groups"] for rule in group["rules"])


def _recorded(objects: Sequence[Object]) -> set[str]:
    rules = [r for o in objects if o["kind"] == "PrometheusRule" for g in o["spec"]["groups"] for r in g["rules"]]
    return {name for rule in rules for name in re.findall(r"\bforeseen_\w+", rule.get("record", ""))}


EVERY = (check_commands, check_pods, check_references, check_metrics)


def check_chart(chart: Path) -> None:
    """All of a chart, for every set of values."""
    found = rendered(chart, VALUES)
    for objects in found.values():
        for check in EVERY:
            check(objects)
    check_schemas([one for objects in found.values() for one in objects], KUBERNETES[-1:])
