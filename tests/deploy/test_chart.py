"""The Helm chart: linted, rendered, checked against Kubernetes' schemas and against the program; a mistake in it fails.

`make test-deploy` runs this; no cluster is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import CycloptsError

from tests.deploy.checks import (
    CHART,
    EVERY,
    ROOT,
    VALUES,
    Object,
    check_chart,
    check_metrics,
    check_schemas,
    linted,
    rendered,
)

NAMES = [path.stem for path in VALUES]


@pytest.fixture(scope="module")
def objects() -> dict[str, list[Object]]:
    return rendered(CHART, VALUES)


def of(objects: Sequence[Object], kind: str, name: str) -> Any:
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def arguments(one: Any) -> list[str]:
    found: list[str] = one["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def test_there_are_enough_sets_of_values() -> None:
    assert len(NAMES) >= 8


def test_helm_finds_nothing_to_say() -> None:
    assert linted(CHART, VALUES) == {name: [] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", EVERY, ids=lambda check: check.__name__)
def test_every_object(objects: dict[str, list[Object]], name: str, check: Any) -> None:
    check(objects[name])


def test_every_object_is_valid_by_the_schemas(objects: dict[str, list[Object]]) -> None:
    check_schemas([one for found in objects.values() for one in found])


def test_a_scaled_model_follows_its_queue_and_starts_by_the_proxies(objects: dict[str, list[Object]]) -> None:
    found = objects["scale_to_zero"]
    spec = of(found, "ScaledObject", "prod-foreseen-model-minilm")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 8)
    queue, absent, _ = (trigger["metadata"] for trigger in spec["triggers"])
    assert queue["query"] == 'sum(foreseen_model_queue_rows{model="minilm",namespace="ml"})'
    assert absent["query"] == 'sum(foreseen_model_absent_rows{model="minilm",namespace="ml"})'
    assert queue["threshold"] == "128"
    assert absent["activationThreshold"] == "0", "any row that waits starts the model"
    proxy = of(found, "Deployment", "prod-foreseen-proxy")
    assert "--stale-if-error-seconds=604800" in arguments(proxy)
    probe = proxy["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
    assert probe == "/v2/health/live", "a proxy must be reachable for a request to start its model"


def test_the_root_secret_is_made_once_and_kept(objects: dict[str, list[Object]]) -> None:
    """An upgrade reads the one that is there; uninstalling leaves it; one of the operator's own is used as it is."""
    secret = of(objects["minimal"], "Secret", "prod-foreseen-root")
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert len(secret["data"]["root"]) >= 64
    template = (CHART / "templates/secret.yaml").read_text()
    assert 'lookup "v1" "Secret" .Release.Namespace $name' in template
    assert 'index $there.data "root"' in template
    assert not [one for one in objects["external_stores"] if one["kind"] == "Secret"]


def test_a_password_is_in_no_argument(objects: dict[str, list[Object]]) -> None:
    """Stores of a Secret come by environment; without one their URLs are arguments."""
    proxy = of(objects["external_stores"], "Deployment", "prod-foreseen-proxy")
    assert not [word for word in arguments(proxy) if word.startswith(("--redis=", "--state="))]
    variables = {one["name"]: one for one in proxy["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert variables["FORESEEN_REDIS"]["valueFrom"]["secretKeyRef"]["key"] == "redis-url"
    assert variables["FORESEEN_STATE"]["valueFrom"]["secretKeyRef"]["key"] == "state-url"


def test_messages_are_of_one_model(objects: dict[str, list[Object]]) -> None:
    """They name none, so their process knows no other; also in front of an upstream."""
    args = arguments(of(objects["kafka"], "Deployment", "prod-foreseen-kafka"))
    assert [word for word in args if word.startswith("--model=")] == [
        "--model=minilm=http://prod-foreseen-model-minilm:8001"
    ]
    assert [word for word in args if word.startswith("--brokers=")] == [
        "--brokers=kafka-0.kafka:9093", "--brokers=kafka-1.kafka:9093",
    ]  # fmt: skip
    assert not any("password=" in word for word in args)
    upstream = arguments(of(objects["kafka_upstream"], "Deployment", "prod-foreseen-kafka"))
    assert [word for word in upstream if word.startswith(("--model=", "--upstream="))] == [
        "--upstream=http://triton.ml:8000", "--model=resnet",
    ]  # fmt: skip


def test_a_kafka_model_that_is_none_of_models_fails(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    kafka = {"enabled": True, "brokers": "k:9092", "topic": "a", "replyTopic": "b", "model": "other"}
    file.write_text(yaml.safe_dump({"models": {"minilm": {}}, "kafka": kafka}))
    with pytest.raises(AssertionError, match="is none of models"):
        rendered(CHART, [file])


def test_dashboards_and_rules_are_the_repositorys(objects: dict[str, list[Object]]) -> None:
    found = objects["monitored"]
    boards = {k: v for one in found if one["kind"] == "ConfigMap" for k, v in one["data"].items()}
    wanted = {path.name: json.loads(path.read_text()) for path in (ROOT / "grafana/dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in boards.items()} == wanted
    for name in ("alerts", "recording"):
        rules = of(found, "PrometheusRule", f"prod-foreseen-{name}")["spec"]
        text = (ROOT / f"grafana/prometheus/rules/{name}.yml").read_text()
        assert rules == yaml.safe_load(text.replace("docs/runbook.md#", "https://docs.example/foreseen/runbook.html#"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"proxi": {"replicas": 2}},
        {"proxy": {"replica": 2}},
        {"proxy": {"replicas": 0}},
        {"models": {"minilm": {"provder": "cuda"}}},
        {"models": {"minilm": {"provider": "rocm"}}},
        {"models": {"mini lm": {}}},
        {"redis": {"url": "http://cache"}},
        {"kafka": {"enabled": True, "brokers": ""}},
        {"artifacts": {"mode": "claim", "claim": ""}},
        {"traces": {"sampler": "sometimes"}},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_values(tmp_path: Path, wrong: Any) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(AssertionError, match="HelmValuesError"):
        rendered(CHART, [file])


MISTAKES = [
    ("proxy.yaml", "--near-bytes=", "--near-byte="),
    ("proxy.yaml", "- proxy\n            - --host", "- prxy\n            - --host"),
    ("proxy.yaml", "readinessProbe:", "readynessProbe:"),
    ("proxy.yaml", "/v2/health/live", "/v2/health/alive"),
    ("proxy.yaml", "averageUtilization", "averageUtilisation"),
    ("proxy.yaml", "targetPort: http }", "targetPort: htp }"),
    ("proxy.yaml", "{{ add $p.drainSeconds $p.deadlineSeconds 10 }}", "5"),
    ("proxy.yaml", "maxUnavailable: {{ $p.podD", "maxUnavailble: {{ $p.podD"),
    ("models.yaml", "--instances=", "--instance="),
    ("models.yaml", "foreseen_model_queue_rows", "foreseen_model_queued_rows"),
    ("models.yaml", "foreseen_model_absent_rows", "foreseen_model_missing_rows"),
    ("models.yaml", "activationThreshold:", "activationTreshold:"),
    ("models.yaml", "pollingInterval:", "pollInterval:"),
    ("models.yaml", "port: 8001, targetPort", "port: 8011, targetPort"),
    ("worker.yaml", "--job-rows=", "--jobs-rows="),
    ("worker.yaml", "--brokers=", "--broker="),
    ("worker.yaml", "--ssl-cafile=/run/foreseen/kafka", "--ssl-cafile=/run/foreseen/kaka"),
    ("proxy.yaml", "--tls-client-ca=", "--tls-clientca="),
    ("worker.yaml", "path: /metrics, port: metrics", "path: /metric, port: metrics"),
    ("state.yaml", "serviceName:", "servicename:"),
    ("networkpolicies.yaml", "policyTypes: [Ingress]", "policytypes: [Ingress]"),
    ("monitoring.yaml", "    - port: http", "    - prt: http"),
    ("_helpers.tpl", "FORESEEN_REDIS", "FORESEEN_REDDIS"),
    ("_helpers.tpl", "--secret-file=", "--secretfile="),
    ("_helpers.tpl", "readOnlyRootFilesystem", "readOnlyRootFileSystem"),
    ("_helpers.tpl", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_ENDPOINT"),
    ("_helpers.tpl", "foreseen models build", "foreseen model build"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "right", "wrong"), MISTAKES, ids=[wrong for _, _, wrong in MISTAKES])
def test_a_mistake_fails(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    """A misspelt flag, field, metric, variable, port or path is found by one of the checks."""
    chart = tmp_path / "foreseen"
    shutil.copytree(CHART, chart)
    path = chart / "templates" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises((AssertionError, CycloptsError, KeyError, StopIteration)):
        check_chart(chart)


def test_a_rule_that_names_no_metric_fails(tmp_path: Path) -> None:
    chart = tmp_path / "foreseen"
    shutil.copytree(CHART, chart)
    path = chart / "files/rules/alerts.yml"
    path.write_text(path.read_text().replace("foreseen_far_up", "foreseen_far_upp"))
    found = rendered(chart, [path for path in VALUES if path.stem == "monitored"])["monitored"]
    with pytest.raises(AssertionError, match="foreseen_far_upp"):
        check_metrics(found)
