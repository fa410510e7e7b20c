"""Recipes beside the chart: load balancers that hash, a systemd unit; each as far as this machine can run it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from foreseen.cli import app
from foreseen.settings.config_file import read_config
from tests.deploy.checks import ROOT
from tests.openapi import application, routes
from tests.ports import free_port

BALANCING, SYSTEMD = ROOT / "deploy/balancing", ROOT / "deploy/systemd"
NGINX = "/usr/sbin/nginx"
HEADER = "x-foreseen-key"


@contextlib.contextmanager
def answering() -> Iterator[tuple[int, list[bytes]]]:
    """A server that notes the bodies it gets."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library names it
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def nginx(folder: Path, ports: tuple[int, int]) -> Iterator[str]:
    """The recipe, with ports and folders of its own; its URL."""
    port = free_port()
    text = (BALANCING / "nginx.conf").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    for number, one in zip((8001, 8002), ports, strict=True):
        text = text.replace(f"127.0.0.1:{number}", f"127.0.0.1:{one}")
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", f"http {{ access_log off; {places}", 1)
    path = folder / "nginx.conf"
    path.write_text(f"pid {folder}/pid; error_log {folder}/error.log; daemon off;\n{text}")
    assert subprocess.run([NGINX, "-t", "-c", path], capture_output=True, check=False).returncode == 0
    process = subprocess.Popen([NGINX, "-c", path])
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert time.monotonic() < deadline
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code == 404  # as the recipe says
    except OSError:
        return False
    raise AssertionError("/metrics must not be passed on")


def post(url: str, body: bytes, key: str | None = None) -> None:
    headers = {"Content-Type": "application/json", **({HEADER: key} if key is not None else {})}
    urllib.request.urlopen(urllib.request.Request(f"{url}/v2/models/m/infer", body, headers), timeout=20).close()


def test_nginx_sends_equal_bodies_to_one_proxy(tmp_path: Path) -> None:
    """By body without a header, whatever the connection; by the header where there is one."""
    with answering() as (one, first), answering() as (two, second), nginx(tmp_path, (one, two)) as url:
        bodies = [json.dumps({"text": f"number {n}"}).encode() for n in range(60)]
        for _ in range(4):
            for body in bodies:
                post(url, body)
        assert set(first) | set(second) == set(bodies)
        assert not set(first) & set(second), "a body met both"
        assert len(first) > 40 < len(second), "and they are spread"
        first.clear(), second.clear()
        for body in bodies:
            post(url, body, "one key")
        assert {len(first), len(second)} == {0, 60}
        large = b"x" * 300_000
        for _ in range(5):
            post(url, large)
        assert sorted((first.count(large), second.count(large))) == [0, 5]


def test_envoy_and_istio_hash_by_the_same_header() -> None:
    envoy = yaml.safe_load((BALANCING / "envoy.yaml").read_text())["static_resources"]
    manager = envoy["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    denied, forwarded = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert denied == {"match": {"path": "/metrics"}, "direct_response": {"status": 404}}
    (policy,) = forwarded["route"]["hash_policy"]
    assert policy["header"]["header_name"] == HEADER
    (cluster,) = envoy["clusters"]
    assert cluster["name"] == forwarded["route"]["cluster"] == cluster["load_assignment"]["cluster_name"]
    assert cluster["lb_policy"] == "RING_HASH"
    (check,) = cluster["health_checks"]
    assert (check["http_health_check"]["path"], "GET") in set(routes(application()))
    rule = yaml.safe_load((BALANCING / "istio.yaml").read_text())["spec"]["trafficPolicy"]["loadBalancer"]
    assert rule["consistentHash"]["httpHeaderName"] == HEADER
    assert f"$http_{HEADER.replace('-', '_')}" in (BALANCING / "nginx.conf").read_text()


def _unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / "foreseen.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say but that the program is not installed here."""
    path = tmp_path / "foreseen.service"
    text = (SYSTEMD / "foreseen.service").read_text().replace("/opt/foreseen/bin/foreseen", "/bin/true")
    path.write_text(text.replace("User=foreseen", "User=root").replace("Group=foreseen", "Group=root"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if "foreseen.service" in line]
    assert (done.returncode, about_it) == (0, [])
    path.write_text(text.replace("KillMode=mixed", "KilMode=mixed"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert "KilMode" in done.stderr, "a misspelt name is found"


def test_the_units_command_and_file_are_taken(tmp_path: Path) -> None:
    """Its flags parse, its settings are settings, and it gets longer to stop than the drain takes."""
    unit = _unit()
    words = shlex.split(unit["ExecStart"][0])
    assert words[0] == "/opt/foreseen/bin/foreseen"
    words = [word.replace("/etc/foreseen/foreseen.toml", str(SYSTEMD / "foreseen.toml")) for word in words]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    settings = next(iter(bound.arguments.values()))
    assert (settings.model, settings.port, settings.workers) == (("minilm",), 8000, 2)
    assert not read_config(SYSTEMD / "foreseen.toml").warnings
    assert float(unit["TimeoutStopSec"][0]) > settings.drain_seconds + settings.deadline_seconds + 10
    assert re.fullmatch(r"/bin/kill -HUP \$MAINPID", unit["ExecReload"][0])


@pytest.mark.parametrize("unit", ["foreseen.service"])
def test_the_unit_runs_as_it_says(tmp_path: Path, unit: str, built: Path) -> None:
    """Its command, started with its environment and folders: ready, renewed by HUP, and ended by TERM in time."""
    from tests.live import given

    data = tmp_path / "lib"
    given(built, data)
    file, port = tmp_path / "foreseen.toml", free_port()
    text = (SYSTEMD / "foreseen.toml").read_text().replace("minilm", "fingerprint").replace("8000", str(port))
    file.write_text(text)
    command = _unit()["ExecStart"][0].replace("/opt/foreseen/bin/foreseen", str(ROOT / ".venv/bin/foreseen"))
    command = command.replace("/var/lib/foreseen", str(data)).replace("/etc/foreseen/foreseen.toml", str(file))
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert any(line.startswith("ready ") for line in process.stdout)
        process.send_signal(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=20) as reply:
            assert reply.status == 200
        process.terminate()
        assert process.wait(float(_unit()["TimeoutStopSec"][0])) == 0
