"""`docker-compose.yml` and what stands around it, held against the Compose Specification and against the program.

No Docker engine is needed. The schema is the specification's own (`tests/compose_spec/README.md` says where it comes
from); commands are parsed by the program's own command line, and every name in them must be one that exists.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cyclopts
import pytest
import yaml
from jsonschema import Draft7Validator

from foreseen import models
from foreseen.cli import app
from foreseen.inference.metrics import ModelMetrics
from foreseen.modelspec.manifest import Manifest, find, load
from foreseen.settings import Common, InferenceSettings, ProxySettings, WorkerSettings
from foreseen.telemetry.exposition import CALLER_STATE, CHILD_STATE, FAR_STATE, QUEUE_STATE, WARM_STATE
from foreseen.telemetry.metrics import ProxyMetrics

ROOT = Path(__file__).parent.parent.parent
SCHEMA = json.loads((ROOT / "tests" / "compose_spec" / "compose-spec.json").read_text())
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
OURS = ("models", "inference-minilm", "inference-fingerprint", "proxy", "worker")
INFERENCE = {"minilm": "inference-minilm", "fingerprint": "inference-fingerprint"}
PORTS = {
    "proxy": 8000, "inference-minilm": 8001, "inference-fingerprint": 8001, "worker": 8002, "prometheus": 9090,
    "grafana": 3000,
}  # fmt: skip
RUNTIME_LABELS = {"job", "instance", "le", "alertname", "alertstate"}
"""What Prometheus and histograms add to a metric's own labels."""


def interpolated(text: str) -> str:
    """A Compose file's text with the defaults of its variables, as without any of them in the environment."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = interpolated((ROOT / "docker-compose.yml").read_text())
    assert "$" not in text, "a variable without a default: the file must start as it is"
    document: dict[str, Any] = yaml.safe_load(text)
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def words_of(service: Mapping[str, Any]) -> list[list[str]]:
    """The commands of a service of ours, without the program's name; several where a shell runs them in a row."""
    if service.get("entrypoint", [])[:1] == ["sh"]:
        parts = [shlex.split(part) for part in service["command"][0].split("&&")]
        assert all(part[0] == "foreseen" for part in parts)
        return [part[1:] for part in parts]
    return [service["command"]]


def parsed(service: Mapping[str, Any]) -> list[Common]:
    """The settings that the program itself makes of a service's commands. Raises CycloptsError on a wrong flag."""
    made = []
    for words in words_of(service):
        _, bound, ignored = app.parse_args(words, exit_on_error=False, print_error=False)
        assert not ignored
        bound.apply_defaults()
        made.append(next(value for value in bound.arguments.values() if isinstance(value, Common)))
    return made


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell of whoever runs the tests has set says nothing about the file."""
    for name in [name for name in os.environ if name.startswith("FORESEEN_")]:
        monkeypatch.delenv(name)


# The file itself.


def test_compose_file_is_valid_by_the_compose_specification(compose: dict[str, Any]) -> None:
    """docker-compose.yml has no error under the Compose Specification's JSON schema."""
    Draft7Validator.check_schema(SCHEMA)
    errors = [
        f"{'/'.join(map(str, error.path))}: {error.message}" for error in Draft7Validator(SCHEMA).iter_errors(compose)
    ]
    assert errors == []


@pytest.mark.parametrize(
    ("service", "field", "wrong"),
    [
        ("proxy", "comand", ["proxy"]),
        ("proxy", "depends_on", {"redis": {"condition": "service_well"}}),
        ("redis", "healthcheck", {"test": "true", "intervall": "5s"}),
        ("inference-minilm", "deploy", {"resources": {"reservations": {"devices": [{"driver": "nvidia"}]}}}),
    ],
)
def test_the_schema_refuses(compose: dict[str, Any], service: str, field: str, wrong: object) -> None:
    """The check goes red: a misspelled field, an unknown condition, a device without capabilities."""
    broken = {**compose, "services": {**compose["services"], service: {**compose["services"][service], field: wrong}}}
    assert not Draft7Validator(SCHEMA).is_valid(broken)


def test_every_reference_is_declared(compose: dict[str, Any], services: dict[str, Any]) -> None:
    """Networks, volumes, secrets and depended-on services exist; bind mounts lie in the repository; none is unused."""
    used: dict[str, set[str]] = {"networks": set(), "volumes": set(), "secrets": set()}
    for name, service in services.items():
        used["networks"].update(service["networks"])
        used["secrets"].update(service.get("secrets", []))
        assert set(service.get("depends_on", {})) <= set(services) - {name}
        for mount in service.get("volumes", []):
            if mount["type"] == "volume":
                used["volumes"].add(mount["source"])
            else:
                assert (ROOT / mount["source"]).exists(), mount
                assert mount["read_only"]
    for kind, names in used.items():
        assert names == set(compose[kind]), kind


def test_dependencies_wait_for_what_can_be_waited_for(services: dict[str, Any]) -> None:
    """Who waits for health waits for a service with a healthcheck; who waits for an end, for one that ends."""
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[name], name
            if how["condition"] == "service_completed_successfully":
                assert services[name]["restart"] != "unless-stopped"
    for name in ("proxy", *INFERENCE.values()):
        assert services[name]["depends_on"]["models"] == {"condition": "service_completed_successfully"}
    for store in ("redis", "state"):
        assert services["proxy"]["depends_on"][store] == {"condition": "service_healthy"}


def test_only_this_machine_reaches_published_ports(services: dict[str, Any]) -> None:
    """Proxy, Prometheus and Grafana are published, on 127.0.0.1; Redis and the model processes are not at all."""
    published = {}
    for name, service in services.items():
        for port in service.get("ports", []):
            address, _, container = port.split(":")
            assert ipaddress.ip_address(address).is_loopback
            published[name] = int(container)
    assert published == {name: PORTS[name] for name in ("proxy", "prometheus", "grafana")}


def test_redis_and_model_processes_are_on_inner_networks_only(
    compose: dict[str, Any], services: dict[str, Any]
) -> None:
    """No way leads out of or into the networks of what has no password; Redis shares its one with proxy and worker."""
    for name in ("redis", "state", *INFERENCE.values()):
        assert all(compose["networks"][network].get("internal") for network in services[name]["networks"]), name
    for network, store in (("cache", "redis"), ("state", "state")):
        assert [name for name, service in services.items() if network in service["networks"]] == [
            *(store, "proxy", "worker")
        ]


def test_prometheus_shares_one_network_with_the_proxy(services: dict[str, Any]) -> None:
    """With two, a name would have two addresses per proxy, and every count would be there twice."""
    assert set(services["prometheus"]["networks"]) & set(services["proxy"]["networks"]) == {"scrape"}


def test_every_service_is_hardened_and_bounded(services: dict[str, Any]) -> None:
    """Read-only root, no capabilities, no new privileges, no root user, limits; all but the builder come back."""
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["restart"] == ("on-failure:2" if name == "models" else "unless-stopped"), name
        assert name == "models" or "healthcheck" in service, name


def test_images_of_others_are_pinned(services: dict[str, Any]) -> None:
    """Every image that is not built here has a version."""
    images = [service["image"] for service in services.values() if "build" not in service]
    assert images
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", image) for image in images), images


def test_redis_is_in_the_cache_role(services: dict[str, Any]) -> None:
    """A memory limit below the container's, LFU eviction, nothing on disk, an explicit address."""
    words = services["redis"]["command"]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags["--maxmemory"] == "1gb"
    assert services["redis"]["deploy"]["resources"]["limits"]["memory"] == "1536m"
    assert (flags["--maxmemory-policy"], flags["--save"], flags["--appendonly"]) == ("allkeys-lfu", "", "no")
    assert (flags["--bind"], flags["--port"]) == ("0.0.0.0", "6379")


def test_the_state_store_is_in_the_state_role(services: dict[str, Any]) -> None:
    """An append-only file on a volume, no eviction; the proxy is told of it."""
    words = services["state"]["command"]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert (flags["--maxmemory-policy"], flags["--appendonly"], flags["--appendfsync"]) == (
        "noeviction",
        "yes",
        "everysec",
    )
    assert [mount["target"] for mount in services["state"]["volumes"]] == ["/data"]
    assert "--state=redis://state:6379/0" in services["proxy"]["command"]


# The program in it.


@pytest.mark.parametrize("name", OURS)
def test_commands_are_the_programs_own(services: dict[str, Any], name: str) -> None:
    """Every flag and value of a service's command is taken by the program's own command line."""
    assert parsed(services[name])


def test_a_wrong_flag_is_refused() -> None:
    """The check goes red: a setting that does not exist, a value that is none."""
    for words in (["proxy", "--hosst=0.0.0.0"], ["inference", "--model=minilm", "--provider=abacus"]):
        with pytest.raises(cyclopts.CycloptsError):
            parsed({"command": words})


@pytest.mark.parametrize("name", OURS)
def test_environment_names_exist(services: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every FORESEEN_ name is a setting of the service's command, and its value arrives there."""
    given = {key: value for key, value in services[name]["environment"].items() if key.startswith("FORESEEN_")}
    assert given
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    for settings in parsed(services[name]):
        for key, value in given.items():
            assert str(getattr(settings, key.removeprefix("FORESEEN_").lower())) == value


def test_no_foreseen_name_lacks_its_service(compose: dict[str, Any]) -> None:
    """FORESEEN_ names stand in the environments that are checked, and nowhere else."""
    ours = [service["environment"] for name, service in compose["services"].items() if name in OURS]
    names = {key for environment in ours for key in environment if key.startswith("FORESEEN_")}
    assert set(re.findall(r"FORESEEN_\w+", (ROOT / "docker-compose.yml").read_text())) == names


def test_proxy_asks_the_services_that_are_there(services: dict[str, Any]) -> None:
    """Each --model address is an inference service that serves that model on that port, and a network joins the two."""
    (proxy,) = parsed(services["proxy"])
    assert isinstance(proxy, ProxySettings)
    addresses = dict(named.split("=", 1) for named in proxy.model)
    assert addresses == {model: f"http://{name}:{PORTS[name]}" for model, name in INFERENCE.items()}
    for model, name in INFERENCE.items():
        (inference,) = parsed(services[name])
        assert isinstance(inference, InferenceSettings)
        assert (inference.model, inference.host, inference.port) == (model, "0.0.0.0", PORTS[name])
        assert set(services[name]["networks"]) & set(services["proxy"]["networks"]) >= {"model"}
    assert (proxy.host, proxy.port, proxy.redis) == ("0.0.0.0", PORTS["proxy"], "redis://redis:6379/0")


def test_the_worker_works_for_the_proxy(services: dict[str, Any]) -> None:
    """Same stores, same secret, same models: what the proxy puts into the queue is taken and answered."""
    ((proxy,), (worker,)) = parsed(services["proxy"]), parsed(services["worker"])
    assert isinstance(proxy, ProxySettings)
    assert isinstance(worker, WorkerSettings)
    for name in ("redis", "state", "secret_file", "model", "data", "models"):
        assert getattr(worker, name) == getattr(proxy, name), name
    assert (worker.host, worker.metrics_port) == ("0.0.0.0", PORTS["worker"])
    assert "ports" not in services["worker"]


def test_what_is_served_is_built(services: dict[str, Any]) -> None:
    """The builder builds every model that is served, into the volume that the others read under the data folder."""
    assert [words[:3] for words in words_of(services["models"])] == [["models", "build", model] for model in INFERENCE]
    for name in OURS:
        mount = next(mount for mount in services[name]["volumes"] if mount["source"] == "models")
        assert mount["target"] == f"{services[name]['environment']['FORESEEN_DATA']}/models"
        assert mount.get("read_only", False) == (name != "models")


def test_secret_is_a_file_that_only_proxy_and_worker_get(compose: dict[str, Any], services: dict[str, Any]) -> None:
    """The secret is mounted where --secret-file looks, owned by their user; git and the images leave it out."""
    (proxy,) = parsed(services["proxy"])
    assert isinstance(proxy, ProxySettings)
    assert [name for name, service in services.items() if "secrets" in service] == ["proxy", "worker"]
    assert str(proxy.secret_file) == "/run/secrets/root"
    assert compose["secrets"]["root"] == {"file": "./docker/secret"}
    uid = services["proxy"]["user"].split(":")[0]
    how = f"install -m 400 -o {uid} /dev/stdin docker/secret"
    for document in ("docker-compose.yml", "docs/deploying.md"):
        assert how in (ROOT / document).read_text(), document
    assert "/secret" in (ROOT / "docker" / ".gitignore").read_text().split()
    assert (ROOT / ".dockerignore").read_text().split("\n")[1] == "*"


def test_gpu_service_reserves_one_device(services: dict[str, Any]) -> None:
    """minilm runs the GPU image on one NVIDIA device and refuses to fall back; no other service asks for a device."""
    (inference,) = parsed(services["inference-minilm"])
    assert isinstance(inference, InferenceSettings)
    assert (inference.provider, inference.fallback) == ("cuda", "refuse")
    assert services["inference-minilm"]["build"]["args"] == {"EXTRA": "gpu"}
    reserved = {
        name: s["deploy"]["resources"]["reservations"]["devices"]
        for name, s in services.items()
        if "reservations" in s["deploy"]["resources"]
    }
    assert reserved == {"inference-minilm": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}


def test_gpu_manifest_is_the_packaged_one_but_for_the_precision() -> None:
    """Clients and keys see the same model: what differs is the precision and what is promised of it."""
    ours = load(ROOT / "docker" / "models" / "minilm" / "model.toml")
    packaged = find("minilm", (Path(models.__file__).parent,))
    assert (ours.precisions, ours.exact, ours.portable) == (("fp16",), False, False)
    differing = {field for field in Manifest.__struct_fields__ if getattr(ours, field) != getattr(packaged, field)}
    assert differing == {"title", "exact", "precisions", "gates"}


# The Dockerfiles.


def dockerfile(path: str) -> Iterator[tuple[str, str]]:
    """Instruction and arguments of every line, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            yield instruction, rest.strip()


@pytest.mark.parametrize("name", OURS)
def test_dockerfiles_hold_together(services: dict[str, Any], name: str) -> None:
    """The target and the build arguments exist, what is copied exists and is let in, and the last user is nobody's."""
    build = services[name]["build"]
    steps = list(dockerfile(build["dockerfile"]))
    stages = [rest.split(" AS ")[1] for instruction, rest in steps if instruction == "FROM"]
    bases = {rest.split(" AS ")[0] for instruction, rest in steps if instruction == "FROM"}
    assert bases - set(stages) == {"python:3.12-slim-bookworm"}
    assert build.get("target", stages[-1]) in stages
    assert set(build.get("args", {})) <= {rest.split("=")[0] for instruction, rest in steps if instruction == "ARG"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for instruction, rest in steps:
        words = shlex.split(rest)
        if instruction == "COPY" and words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages
        elif instruction == "COPY":
            assert all((ROOT / source).exists() and source in allowed for source in words[:-1]), rest
        assert instruction not in ("ADD", "SECRET")
    users = [rest for instruction, rest in steps if instruction == "USER"]
    assert set(users) == {services[name]["user"]}


@pytest.mark.parametrize(
    ("path", "extras"),
    [
        ("docker/proxy.Dockerfile", {"proxy,grpc,otel"}),
        ("docker/inference.Dockerfile", {"$EXTRA,otel", "cpu,build", "up,otel"}),
    ],
)
def test_images_install_their_extras_only(path: str, extras: set[str]) -> None:
    """The proxy image installs `proxy`, the inference image `cpu` or `gpu`, the builder `cpu` and `build`; both that
    serve can export traces."""
    runs = " ".join(rest for instruction, rest in dockerfile(path) if instruction == "RUN")
    assert set(re.findall(r"foreseen-\*\.whl\)\[([^]]+)\]", runs)) == extras


# Prometheus and Grafana.


def test_prometheus_reads_every_process(services: dict[str, Any]) -> None:
    """Each proxy, each model process and Prometheus itself are targets, by service name and with the right port."""
    document = yaml.safe_load((ROOT / "grafana" / "prometheus" / "prometheus.yml").read_text())
    targets = {}
    for job in document["scrape_configs"]:
        found = [t for static in job.get("static_configs", []) for t in static["targets"]]
        found += [f"{name}:{dns['port']}" for dns in job.get("dns_sd_configs", []) for name in dns["names"]]
        assert job.get("metrics_path", "/metrics") == "/metrics"
        targets[job["job_name"]] = found
    assert targets == {
        "proxy": [f"proxy:{PORTS['proxy']}"],
        "worker": [f"worker:{PORTS['worker']}"],
        "inference": [f"{name}:{PORTS[name]}" for name in INFERENCE.values()],
        "prometheus": [f"127.0.0.1:{PORTS['prometheus']}"],
    }
    assert f"--web.listen-address=0.0.0.0:{PORTS['prometheus']}" in services["prometheus"]["command"]


def test_grafana_finds_its_data_source_and_dashboards(services: dict[str, Any]) -> None:
    """The data source is the service Prometheus, dashboards lie in the mounted folder, every panel's source exists."""
    (source,) = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/foreseen.yaml").read_text())["providers"]
    mounts = {mount["target"]: ROOT / mount["source"] for mount in services["grafana"]["volumes"]}
    assert source["url"] == f"http://prometheus:{PORTS['prometheus']}"
    assert mounts[provider["options"]["path"]].resolve() == ROOT / "grafana" / "dashboards"
    assert mounts["/etc/grafana/provisioning"].resolve() == ROOT / "grafana" / "provisioning"
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounts[str(home.parent)] / home.name).is_file()
    for path in DASHBOARDS:
        assert set(re.findall(r'"type": "prometheus",\s+"uid": "([^"]*)"', path.read_text())) == {"${datasource}"}, path
        assert 'query": "prometheus"' in path.read_text()
    assert (source["type"], source["isDefault"]) == ("prometheus", True)


def exposed() -> dict[str, set[str]]:
    """Every sample's name → its label names, of the proxy's and the model process's own registries."""
    samples = {}
    for registry in (ProxyMetrics().registry, ModelMetrics("minilm").registry):
        for collector in list(registry._collector_to_names):
            labels = set(collector._labelnames)  # type: ignore[attr-defined]
            samples |= dict.fromkeys(registry._collector_to_names[collector], labels)
    queue = {name: {label} if label else set() for name, _, label, _ in (*QUEUE_STATE, *CHILD_STATE)}
    warm = {name: set(labels) for name, _, labels, _ in (*WARM_STATE, *CALLER_STATE)}
    return samples | {name: set() for name, _, _ in FAR_STATE} | queue | warm


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_metrics_that_exist(path: Path) -> None:
    """Every metric of every query is one that the program has, with the labels that it has."""
    document, samples = json.loads(path.read_text()), exposed()
    queries = [target["expr"] for panel in document["panels"] for target in panel.get("targets", [])]
    queries += [
        variable["query"]["query"] for variable in document["templating"]["list"] if variable["type"] == "query"
    ]
    assert queries
    for query in queries:
        names = set(re.findall(r"\bforeseen_\w+", query))
        assert names <= set(samples), query
        known = {label for name in names for label in samples[name]} | RUNTIME_LABELS
        asked = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(",")}
        asked |= set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query))
        assert asked <= known, query


def test_a_metric_that_does_not_exist_is_noticed() -> None:
    """The names are those that a scrape shows: counters end in _total, and no other name is known."""
    samples = exposed()
    assert samples["foreseen_rows_total"] == {"model", "result"}
    assert "foreseen_request_duration_seconds_bucket" in samples
    assert "foreseen_hit_ratio" not in samples
