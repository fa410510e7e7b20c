"""The chart's commands on several hosts, under load: `make verify-fleet`. Needs root, iproute2 and redis-server.

Three hosts with a proxy each, a model replica on two of them, a real Redis Cluster (a master and another one's replica
on each host) and the state store. Every pod's command is the rendered chart's, with addresses in place of service
names. While clients ask, every proxy is replaced, then every model replica, one new pod before each old one goes. Then
a host is lost with all its pods, silently. Every answer is checked. A client tries again where it got no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from redis import Redis

from foreseen.keys.secret import make_secret
from tests.deploy.checks import CHART, ROOT, rendered
from tests.fleet.network import GATEWAY, NETWORK, Pod, Pods, Service, bridge
from tests.models_fixture import built_data
from tests.questions import fingerprint, numbers

REDIS = "/usr/bin/redis-server"
CLIENTS, POOL, NEW = 12, 300, 0.1
TIMEOUT_SECONDS, TRIES = 2.5, 4
NAME = "prod-foreseen"


class Load:
    """Clients of the proxies' service. `phase` is what answers are counted under."""

    def __init__(self) -> None:
        self.phase = "before"
        self.counts: dict[str, Counter[str]] = {}
        self.slowest: dict[str, float] = {}
        self._new = 10**6
        self._over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            self._over.set()
            await asyncio.gather(*tasks)

    async def _client(self, number: int) -> None:
        dice = random.Random(number)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)) as session:
            while not self._over.is_set():
                if dice.random() < NEW:
                    self._new += 1
                    seed = self._new
                else:
                    seed = min(int(dice.paretovariate(0.8)), POOL)
                await self._ask(session, seed)

    async def _ask(self, session: aiohttp.ClientSession, seed: int) -> None:
        row, began = numbers(seed), time.monotonic()
        body = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "INT64", "data": row}]}
        for attempt in range(TRIES):
            try:
                headers = {"Request-Timeout": "2"}
                url = f"http://{GATEWAY}:8000/v2/models/fingerprint/infer"
                async with session.post(url, json=body, headers=headers) as reply:
                    answer = await reply.json(content_type=None)
                    if reply.status == 200:
                        outputs = {one["name"]: one["data"] for one in answer["outputs"]}
                        self._count("right" if outputs["digest"] == fingerprint(row) else "WRONG")
                        self._count("hits", int("hit" in reply.headers["Cache-Status"]))
                        self._count("answered at a later try", int(attempt > 0))
                        slowest = max(self.slowest.get(self.phase, 0.0), time.monotonic() - began)
                        self.slowest[self.phase] = slowest
                        return
                    self._count(f"status {reply.status}")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._count(type(error).__name__)
        self._count("FAILED")

    def _count(self, what: str, times: int = 1) -> None:
        """Under the phase of now: a request that was under way when a host was lost met the loss."""
        self.counts.setdefault(self.phase, Counter())[what] += times


class Fleet:
    """The pods of the rendered chart."""

    def __init__(self, pods: Pods, folder: Path) -> None:
        self._pods, self._folder = pods, folder
        objects = rendered(CHART, [ROOT / "tests/deploy/values/fleet.yaml"])["fleet"]
        self._specs = {
            one["metadata"]["name"]: one["spec"]["template"]["spec"]
            for one in objects
            if one["kind"] in ("Deployment", "StatefulSet")
        }
        make_secret(folder / "root/root")
        proxy = self.container(f"{NAME}-proxy")
        self.proxies = Service(8000, proxy["readinessProbe"]["httpGet"]["path"])
        model = self.container(f"{NAME}-model-fingerprint")
        self.models = Service(8001, model["readinessProbe"]["httpGet"]["path"])

    def container(self, deployment: str) -> Any:
        return self._specs[deployment]["containers"][0]

    def grace(self, deployment: str) -> float:
        return float(self._specs[deployment]["terminationGracePeriodSeconds"])

    def start(self, deployment: str, number: int, port: int) -> Pod:
        """A pod of a deployment, by its rendered command and environment."""
        data = self._folder / f"data-{number}"
        data.mkdir()
        (data / "models").symlink_to(built_data("fingerprint") / "models")
        container = self.container(deployment)
        names = {
            f"{NAME}-model-fingerprint": GATEWAY, f"{NAME}-state": f"{NETWORK}.10", "/run/foreseen": str(self._folder),
        }  # fmt: skip
        words = [_replaced(word, names) for word in container["args"]]
        variables = {one["name"]: one["value"] for one in container["env"]} | {"FORESEEN_DATA": str(data)}
        return self._pods.start(
            deployment.removeprefix(f"{NAME}-"), number, [str(ROOT / ".venv/bin/foreseen"), *words], variables, port
        )

    async def roll(self, service: Service, deployment: str, numbers_: list[int]) -> list[float]:
        """A rolling update, maxSurge 1 and maxUnavailable 0; how long each old pod took to end."""
        took = []
        for old, number in zip(list(service.pods), numbers_, strict=True):
            new = self.start(deployment, number, service.port)
            service.pods.append(new)
            await service.until_ready(new)
            took.append(await service.delete(old, self.grace(deployment)))
        return took


def _replaced(word: str, names: dict[str, str]) -> str:
    for name, place in names.items():
        word = word.replace(name, place)
    return word


def redis_cluster(pods: Pods, folder: Path) -> list[Pod]:
    """Three masters, .11 to .13, and a replica of each on the next host, .14 to .16."""
    servers = []
    for number in range(11, 17):
        place = folder / f"redis-{number}"
        place.mkdir()
        flags = ["--bind", "0.0.0.0", "--protected-mode", "no", "--port", "6379", "--save", "", "--dir", str(place)]
        flags += ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--maxmemory-policy", "allkeys-lfu"]
        servers.append(pods.start("redis", number, [REDIS, *flags], port=6379))
    deadline = time.monotonic() + 30
    addresses = [f"{pod.address}:6379" for pod in servers]
    while True:
        words = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if "All 16384 slots covered" in done.stdout:
            return servers
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.2)


def masters(pods: list[Pod]) -> list[Pod]:
    found = []
    for pod in pods:
        with Redis(pod.address, 6379, protocol=2) as client:
            found += [pod] if client.execute_command("ROLE")[0] == b"master" else []
    return found


async def verify(seconds: float, folder: Path, pods: Pods) -> dict[str, Any]:
    servers = redis_cluster(pods, folder)
    state = folder / "state"
    state.mkdir()
    flags = ["--bind", "0.0.0.0", "--protected-mode", "no", "--appendonly", "yes", "--dir", str(state)]
    pods.start("state", 10, [REDIS, *flags, "--maxmemory-policy", "noeviction"], port=6379)
    fleet, load = Fleet(pods, folder), Load()
    fleet.models.pods = [fleet.start(f"{NAME}-model-fingerprint", number, 8001) for number in (21, 22)]
    fleet.proxies.pods = [fleet.start(f"{NAME}-proxy", number, 8000) for number in (31, 32, 33)]
    worker = fleet.start(f"{NAME}-worker", 41, 8002)
    async with fleet.models.running(), fleet.proxies.running():
        for service in (fleet.models, fleet.proxies):
            for pod in list(service.pods):
                await service.until_ready(pod)
        async with load.running():
            await asyncio.sleep(seconds)
            load.phase = "rolling update of the proxies"
            ended = await fleet.roll(fleet.proxies, f"{NAME}-proxy", [34, 35, 36])
            await asyncio.sleep(seconds)
            load.phase = "rolling update of the model"
            ended += await fleet.roll(fleet.models, f"{NAME}-model-fingerprint", [23, 24])
            await asyncio.sleep(seconds)
            lost_master = masters(servers)[1]
            load.phase = "loss of a host"
            for pod in (fleet.proxies.pods[1], fleet.models.pods[1], lost_master):
                pod.lose()
            await asyncio.sleep(15)
            load.phase = "after it"
            await asyncio.sleep(2 * seconds)
        left = [one for one in servers if one is not lost_master]
        well = len(masters(left)) == 3
        assert worker.process.poll() is None, "the worker ended"
    return {
        "phases": {phase: dict(counts) for phase, counts in load.counts.items()},
        "slowest answer, s": {phase: round(slow, 2) for phase, slow in load.slowest.items()},
        "pods ended in, s": [round(one, 1) for one in ended],
        "Redis Cluster whole again": well,
    }


def main() -> int:
    """Run it; status 1 where an answer was wrong, or a request failed though it was tried again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load before, between and after")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fsn") as name, bridge():
        folder = Path(name)
        logs = ROOT / "build/fleet"
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()
        pods = Pods(logs)
        try:
            found = asyncio.run(verify(settings.seconds, folder, pods))
        finally:
            pods.close()
    print(json.dumps(found, indent=1))
    bad = sum(counts.get(what, 0) for counts in found["phases"].values() for what in ("WRONG", "FAILED"))
    planned = [counts for phase, counts in found["phases"].items() if phase.startswith(("rolling", "before"))]
    fine = ("right", "hits", "answered at a later try")
    unanswered = sum(count for counts in planned for what, count in counts.items() if what not in fine)
    print(f"{bad} wrong or failed; {unanswered} requests of planned changes that were not answered at once")
    return 0 if not bad and not unanswered and found["Redis Cluster whole again"] else 1


if __name__ == "__main__":
    sys.exit(main())
