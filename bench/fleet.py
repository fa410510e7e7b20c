"""What a fleet of proxies over Redis Cluster does on a real trace of keys: `make simulate-fleet`.

Near is per process. So equal requests that meet different proxies cost far traffic, and a load balancer that hashes by
body or key header keeps them together. This simulates 2 to 64 proxies. A request goes to any of them, to the one that
its key hashes to, or to that with a bound on the load of each. Their number is fixed, or follows the load (half of them
at night). Near itself is asked, not a model of it. far is a bounded LRU on every shard, and hashing a ring of 100
points a proxy, as Envoy's and nginx's.

Then the costs of one process, measured on this machine or given, say what such a fleet can carry, which part ends
first (the proxies' CPU, a shard's CPU, a shard's network), and how many model processes its misses keep busy.
"""

from __future__ import annotations

import argparse
import bisect
import json
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import xxhash
from rich.console import Console
from rich.table import Table

from bench.policy import key_trace
from foreseen.proxy.cache.near import Near, size_of
from foreseen.stores.redis_urls import SLOTS, slot_of
from foreseen.types import Key, Output, Prediction

Routing = Literal["any", "hashed", "bounded"]
ROUTINGS: tuple[Routing, ...] = ("any", "hashed", "bounded")
SIZES = (2, 4, 8, 16, 32, 64)
BOUND = 1.3
"""With a bound no proxy gets more than so many times its share (Envoy's hash_balance_factor)."""
WINDOW = 2000
"""Requests by which the busiest proxy is judged."""
POINTS = 100
"""Of one proxy on the ring."""
DAYS = 5
"""How often the fleet shrinks to a half and grows again within the trace, where it follows the load."""
NETWORK_BYTES_A_SECOND = 1.25e9
"""A shard's link: 10 Gbit/s."""
_ENTRY = Prediction((Output("y", "FP32", (16,)),), (bytes(64),), "d", 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Costs:
    """Of one process, in µs of CPU: of a proxy by where the answer came from, of Redis by operation; and the bytes of
    an entry with its protocol. `model_rows_a_second` is of one model process."""

    near_micros: float = 71.0
    far_micros: float = 170.0
    miss_micros: float = 290.0
    redis_get_micros: float = 6.5
    redis_set_micros: float = 8.1
    entry_bytes: int = 230
    model_rows_a_second: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """Of one simulated run, a request each row. Shares are of all requests; `busiest_*` is the share of the busiest
    proxy or shard times their number: 1 is even."""

    proxies: int
    routing: Routing
    autoscaling: bool
    near: float
    far: float
    model: float
    busiest_proxy: float
    busiest_shard: float

    @property
    def hits(self) -> float:
        return self.near + self.far

    @property
    def far_operations(self) -> float:
        """GETs and SETs of a request."""
        return self.far + 2 * self.model


class Ring:
    """Consistent hashing: a key's proxy among those that are there; with a bound the next one that has room."""

    def __init__(self, members: Sequence[int]) -> None:
        points = [
            (xxhash.xxh3_64_intdigest(f"{member}/{n}".encode()), member) for member in members for n in range(POINTS)
        ]
        points.sort()
        self._at = [at for at, _ in points]
        self._members = [member for _, member in points]

    def of(self, hashed: int, served: Sequence[int] = (), most: float = 0.0) -> int:
        """`served` is how much each had lately, `most` how much one may have."""
        at = bisect.bisect(self._at, hashed)
        if most:
            while served[self._members[at % len(self._members)]] >= most:
                at += 1
        return self._members[at % len(self._members)]


class Shards:
    """far: so many entries in all, on shards by Redis Cluster's slots."""

    def __init__(self, shards: int, entries: int) -> None:
        self._kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(shards)]
        self._most = max(1, entries // shards)
        self.asked = [0] * shards

    def get(self, key: int, shard: int) -> bool:
        self.asked[shard] += 1
        kept = self._kept[shard]
        if key not in kept:
            return False
        kept.move_to_end(key)
        return True

    def put(self, key: int, shard: int) -> None:
        kept = self._kept[shard]
        kept[key] = None
        if len(kept) > self._most:
            kept.popitem(last=False)


def simulate(
    keys: Sequence[int], proxies: int, shards: int, *, routing: Routing, autoscaling: bool, near: float, far: float
) -> Outcome:
    """`near` and `far` are the entries that one proxy and all shards hold, as shares of the distinct keys."""
    distinct = max(keys) + 1
    names = [Key(number.to_bytes(32, "big")) for number in range(distinct)]
    hashes = [xxhash.xxh3_64_intdigest(name) for name in names]
    places = [slot_of(name) * shards // SLOTS for name in names]
    room = max(2, round(near * distinct)) * size_of(_ENTRY)
    nears = {number: Near(room) for number in range(proxies)}
    store, dice = Shards(shards, round(far * distinct)), random.Random(0)
    served, counts, busiest = [0] * proxies, [0, 0, 0], list[float]()
    ring, there = Ring(range(proxies)), proxies
    for at, key in enumerate(keys):
        wanted = proxies
        if autoscaling and (at * DAYS * 2 // len(keys)) % 2:
            wanted = max(1, proxies // 2)
        if wanted != there:
            nears |= {number: Near(room) for number in range(there, wanted)}  # a new process remembers nothing
            ring, there = Ring(range(wanted)), wanted
        if routing == "any":
            proxy = dice.randrange(there)
        else:
            most = BOUND * (sum(served) + there) / there if routing == "bounded" else 0.0
            proxy = ring.of(hashes[key], served, most)
        served[proxy] += 1
        if at % WINDOW == WINDOW - 1:
            busiest.append(max(served) * there / sum(served))
            served = [0] * proxies
        if nears[proxy].get(names[key]) is not None:
            counts[0] += 1
            continue
        if store.get(key, places[key]):
            counts[1] += 1
        else:
            counts[2] += 1
            store.put(key, places[key])
        nears[proxy].put(names[key], _ENTRY)
    total, asked = len(keys), max(1, sum(store.asked))
    near, far, model = (count / total for count in counts)
    busiest_proxy, busiest_shard = sum(busiest) / len(busiest), max(store.asked) * shards / asked
    return Outcome(proxies, routing, autoscaling, near, far, model, busiest_proxy, busiest_shard)


def capacity(outcome: Outcome, shards: int, costs: Costs) -> dict[str, float]:
    """Requests a second at which each part ends, by itself. A shard of Redis runs one thread; a proxy is one core."""
    proxy_micros = outcome.near * costs.near_micros + outcome.far * costs.far_micros + outcome.model * costs.miss_micros
    gets, sets = outcome.far + outcome.model, outcome.model
    redis_micros = gets * costs.redis_get_micros + sets * costs.redis_set_micros
    sent = (outcome.far + sets) * costs.entry_bytes
    even = shards / outcome.busiest_shard
    return {
        "proxies": outcome.proxies / outcome.busiest_proxy * 1e6 / proxy_micros,
        "Redis CPU": even * 1e6 / max(redis_micros, 1e-9),
        "Redis network": even * NETWORK_BYTES_A_SECOND / max(sent, 1e-9),
    }


def report(outcomes: Sequence[Outcome], shards: int, costs: Costs, origin: str) -> None:
    """`models` is how many model processes keep up with what the proxies and Redis can carry."""
    columns = (
        "proxies", "routing", "autoscaling", "hits", "near", "far ops", "model rows", "busiest proxy", "busiest shard",
        "requests/s", "ends first", "models",
    )  # fmt: skip
    table = Table(*columns, title=f"{origin}; {shards} shards")
    for one in outcomes:
        ends = capacity(one, shards, costs)
        first = min(ends, key=lambda name: ends[name])
        table.add_row(
            str(one.proxies), one.routing, "yes" if one.autoscaling else "no",
            f"{one.hits:.3f}", f"{one.near:.3f}", f"{one.far_operations:.3f}", f"{one.model:.3f}",
            f"{one.busiest_proxy:.2f}", f"{one.busiest_shard:.2f}", f"{ends[first]:,.0f}", first,
            f"{ends[first] * one.model / costs.model_rows_a_second:,.0f}",
        )  # fmt: skip
    Console(width=150).print(table)


def main() -> None:
    """Measure the costs unless they are given, simulate, print and keep both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--near", type=float, default=0.02, help="entries of one near, as a share of the distinct keys")
    parser.add_argument("--far", type=float, default=0.8, help="entries of far")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--no-measuring", action="store_true", help="take the costs that stand in bench/fleet.py")
    settings = parser.parse_args()
    costs = Costs()
    if not settings.no_measuring:
        from bench.fleet_costs import measured

        costs = measured()
    keys, origin = key_trace(settings.requests)
    outcomes = [
        simulate(
            keys, size, settings.shards, routing=routing, autoscaling=scaling, near=settings.near, far=settings.far
        )
        for size in settings.sizes
        for scaling in (False, True)
        for routing in ROUTINGS
    ]
    report(outcomes, settings.shards, costs, origin)
    print("costs of one process:", ", ".join(f"{name} {value:g}" for name, value in asdict(costs).items()))
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    document = {"costs": asdict(costs), "outcomes": [asdict(one) for one in outcomes], "trace": origin}
    (out / "fleet.json").write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
