"""A canary: the candidate answers chosen callers, always the same ones; no answer of one model is ever the other's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from foreseen.errors import SetupError
from foreseen.keys.secret import make_secret
from foreseen.operate.commands.canary_command import lines, summary_of
from foreseen.operate.scrape import parse
from foreseen.proxy.canary.canary_share import CanaryShare, place_of
from foreseen.telemetry.metrics import ProxyMetrics
from tests.foreign import Foreign, Front, fronted, listening
from tests.grpc_calls import grpc_front
from tests.proxy.predict.test_shadow import until
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_91_tenants import hashed, key_of

OTHER = [[5, 6, 7, 8]]
"""What the candidate answers to every row."""


class Callers:
    """A proxy with a canary, and callers of forty tenants, who share their entries."""

    def __init__(self, front: Front) -> None:
        self.front = front

    async def ask(self, caller: int, seed: int) -> tuple[str, str]:
        """Which of the two has answered, and whether it was a hit."""
        url, client, asked = f"{self.front._url}/v2/models/fp/infer", self.front._client, ask_fingerprint(numbers(seed))
        async with client.post(url, json=asked, headers=key_of(f"t{caller}")) as got:
            assert got.status == 200, await got.text()
            data = json.loads(await got.read())["outputs"][0]["data"]
            how = "hit" if ";hit" in got.headers["Cache-Status"] else "miss"
        assert data in ([*OTHER[0]], fingerprint(numbers(seed)))
        return ("candidate" if data == OTHER[0] else "live"), how

    async def sides(self, seeds: range, callers: range = range(1, 41)) -> list[str]:
        """By which side each caller is answered, which is always the same one."""
        found = []
        for caller in callers:
            mine = {(await self.ask(caller, seed))[0] for seed in seeds}
            assert len(mine) == 1, caller
            found += mine
        return found


def tenants(data: Path) -> Path:
    """A keys file of forty tenants in a data directory with an operator's key."""
    data.mkdir()
    make_secret(data / "admin-token")
    tables = [f'[tenant.t{n}]\nkeys = ["{hashed(f"t{n}")}"]\nscope = "public"\n' for n in range(1, 41)]
    (data / "keys.toml").write_text("\n".join(tables))
    return data / "keys.toml"


@contextlib.asynccontextmanager
async def with_canary(data: Path, share: str, candidate: Foreign, **more: Any) -> AsyncIterator[Callers]:
    live = Foreign()
    keys = tenants(data)
    more = {"candidate_digest": "2", "upstream_probe": False, "keys_file": keys} | more
    async with (
        listening(live.application()) as url,
        listening(candidate.application()) as other,
        fronted(url, data, candidate=other, canary=share, **more) as front,
    ):
        found = front.proxy.candidate
        assert found is not None
        await until(lambda: (served := found.served) is not None and served.ready)
        yield Callers(front)


def another() -> Foreign:
    """A server whose answers are never the live one's."""
    made = Foreign()
    made.answer = lambda rows: OTHER * len(rows)
    return made


def test_a_larger_share_has_the_callers_of_a_smaller_one() -> None:
    """By their place, which is uniform and depends on model and caller alone."""
    places = [place_of("m", f"10.0.{n // 256}.{n % 256}") for n in range(4000)]
    for share in (0.05, 0.1, 0.5):
        assert abs(sum(place < share for place in places) / 4000 - share) < 0.03
    assert place_of("m", "a") == place_of("m", "a") != place_of("n", "a")


async def test_callers_stay_where_they_are_and_no_answer_crosses(tmp_path: Path) -> None:
    """The same rows asked by all: each side computes them once, and every caller gets its own side's, also from the
    caches."""
    candidate = another()
    async with with_canary(tmp_path / "d", "40%", candidate) as callers:
        sides = await callers.sides(range(5))
        assert 5 <= sides.count("candidate") <= 28
        assert await callers.sides(range(5)) == sides
        assert await callers.sides(range(3, 8)) == sides
        assert [candidate.rows_like(numbers(seed)) for seed in range(8)] == [1] * 8
        metrics = callers.front.proxy.metrics
        chosen = sides.count("candidate")
        for side, count in (("candidate", chosen), ("live", 40 - chosen)):
            assert metrics.canary_requests.labels("fp", side, "200")._value.get() == 15 * count
        at_once = await asyncio.gather(*(callers.ask(caller, 99) for caller in range(1, 41)))
        assert [side for side, _ in at_once] == sides
        assert candidate.rows_like(numbers(99)) == 1


async def test_promote_and_abort(tmp_path: Path) -> None:
    """From one moment on all callers, or none, are answered by the candidate; what was computed is still there."""
    async with with_canary(tmp_path / "d", "30%", another()) as callers:
        before = await callers.sides(range(3))
        canary = callers.front.proxy.canary
        assert canary is not None
        canary.share.set(1.0)
        assert set(await callers.sides(range(3))) == {"candidate"}
        assert (await callers.ask(1, 0))[1] == "hit"
        canary.share.set(0.0)
        assert set(await callers.sides(range(3))) == {"live"}
        assert (await callers.ask(1, 0))[1] == "hit"
        canary.share.set(0.3)
        assert await callers.sides(range(3)) == before


async def test_a_candidate_that_fails_leaves_its_callers_to_the_model_in_force(tmp_path: Path) -> None:
    """Once it is not ready any more."""
    candidate = another()
    async with with_canary(tmp_path / "d", "100%", candidate) as callers:
        assert await callers.ask(1, 1) == ("candidate", "miss")
        candidate.ready = False
        found = callers.front.proxy.candidate
        assert found is not None
        await until(lambda: found.served is None or not found.served.ready)
        assert await callers.ask(1, 1) == ("live", "miss")
        candidate.ready = True
        await until(lambda: found.served is not None and found.served.ready)
        assert await callers.ask(1, 1) == ("candidate", "hit")


async def test_a_candidate_with_the_digest_in_force_is_not_asked(tmp_path: Path) -> None:
    """It would share the key space: its answers could not be told from the model's."""
    async with with_canary(tmp_path / "d", "100%", another(), upstream_digest="2") as callers:
        assert await callers.ask(1, 1) == ("live", "miss")


async def test_operators_change_the_share(tmp_path: Path) -> None:
    """Not without their key, and no more than all; another process of the data directory follows."""
    async with with_canary(tmp_path / "d", "10%", another()) as callers:
        proxy, token = callers.front.proxy, (tmp_path / "d" / "admin-token").read_text().strip()
        canary = proxy.canary
        assert canary is not None
        async with listening(proxy.admin) as url, aiohttp.ClientSession() as client:
            key = {"Authorization": f"Bearer {token}"}
            for headers, body, status in (
                ({}, {"share": 1}, 401), (key, {"share": 2}, 400), (key, [], 400), (key, {"share": 0.25}, 200),
            ):  # fmt: skip
                async with client.post(f"{url}/admin/canary", json=body, headers=headers) as reply:
                    assert reply.status == status
        assert canary.share.share == 0.25
        beside = CanaryShare("fp", proxy.settings.candidate or "", 0.1, tmp_path / "d", ProxyMetrics())
        assert beside.share == 0.25
        following = asyncio.create_task(beside.follow())
        canary.share.set(0.75)
        await until(lambda: beside.share == 0.75)
        following.cancel()
        assert CanaryShare("fp", "http://another", 0.1, tmp_path / "d", ProxyMetrics()).share == 0.1


@pytest.mark.parametrize("content", ["", "[]", '{"share": "x"}', '{"model": "m", "candidate": "a"}'])
def test_a_file_that_says_nothing_leaves_the_setting_in_force(tmp_path: Path, content: str) -> None:
    """Whatever stands in it."""
    (tmp_path / "canary.json").write_text(content)
    assert CanaryShare("m", "a", 0.2, tmp_path, ProxyMetrics()).share == 0.2


@pytest.mark.parametrize("wrong", [{"canary": "10%"}, {"canary": "x", "candidate": "http://127.0.0.1:1"}])
async def test_wrong_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """With the name of the flag."""
    with pytest.raises(SetupError, match="--canary"):
        async with fronted(None, tmp_path / "d", model=("fingerprint",), **wrong):
            pass


def test_what_is_said_of_a_canary() -> None:
    """The share, and of each side requests, failures and the mean time."""
    text = lines(summary_of(parse(EXPOSITION)))
    assert "m: the candidate answers 0.1 of callers" in text
    assert "  live: 90 requests, 0 failed, 2 ms on average" in text
    assert "  candidate: 10 requests, 1 failed" in text
    assert "--canary 10%" in lines({})


EXPOSITION = """
foreseen_canary_share{model="m"} 0.1
foreseen_canary_requests_total{code="200",model="m",side="live"} 90.0
foreseen_canary_requests_total{code="200",model="m",side="candidate"} 9.0
foreseen_canary_requests_total{code="503",model="m",side="candidate"} 1.0
foreseen_canary_request_duration_seconds_sum{model="m",side="live"} 0.18
"""


async def test_callers_of_grpc_are_answered_by_their_own_side(tmp_path: Path) -> None:
    """Forty tenants, by both forms of contents, each twice: every one is answered by one side, which is the one
    that answers it over HTTP, and each side computes a row once. Promoted, the candidate answers all."""
    data, candidate = tmp_path / "d", another()
    more = {"candidate_digest": "2", "upstream_probe": False, "keys_file": tenants(data), "canary": "40%"}
    async with (
        listening(candidate.application()) as other,
        grpc_front(data, Foreign().application(), candidate=other, **more) as asked,
    ):
        found, canary = asked.front.proxy.candidate, asked.front.proxy.canary
        assert found is not None
        assert canary is not None
        await until(lambda: (served := found.served) is not None and served.ready)

        async def side(caller: int, seed: int, *, raw: bool) -> str:
            reply = await asked.client.infer(numbers(seed), raw=raw, x_api_key=key_of(f"t{caller}")["X-API-Key"])
            assert reply.code is grpc.StatusCode.OK, reply.details
            assert reply.rows in ([OTHER[0]], [fingerprint(numbers(seed))])
            return "candidate" if reply.rows == [OTHER[0]] else "live"

        sides: list[str] = []
        for caller in range(1, 41):
            mine = {await side(caller, seed, raw=raw) for seed in (1, 2, 3) for raw in (True, False) for _ in range(2)}
            assert len(mine) == 1, caller
            sides += mine
        assert 5 <= sides.count("candidate") <= 28
        assert sides == await Callers(asked.front).sides(range(1, 4))
        assert [candidate.rows_like(numbers(seed)) for seed in (1, 2, 3)] == [1, 1, 1]
        canary.share.set(1.0)
        assert {await side(caller, 1, raw=True) for caller in range(1, 41)} == {"candidate"}
