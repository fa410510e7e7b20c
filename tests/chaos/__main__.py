"""One bounded run of chaos, and its table.

    python -m tests.chaos --seconds 600 --seed 1 --json chaos.json

Ends with status 1 where an answer was wrong, where more than 0.05 % of the requests failed outside of what a killed
process had in flight, or where something took longer to recover than it may: 2 s, a model's process its time to load
and 1 s more. Recovered: far is asked again, a purge is confirmed, a row that nobody knows is answered, new connections
are served. Whole: there are as many workers as ever.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from foreseen.keys.secret import make_secret
from tests.chaos.events import HELD_SECONDS, KILL_AGAIN_SECONDS, LOOK_SECONDS, Chaos, Kind
from tests.chaos.load import Asked, Load
from tests.faults import between
from tests.live import started
from tests.models_fixture import built_data

ERROR_SHARE = 0.0005
RECOVERY_SECONDS = 2.0
MODEL_RECOVERY_SECONDS = 1.0
GIVEN_UP_SECONDS = 30.0
CALM_SECONDS = (0.4, 1.0)


@dataclass
class Happened:
    """One fault: when it began, when it was over, when all was as before."""

    kind: str
    victim: str
    kills: bool
    began: float
    healed: float
    recovered: float
    whole: float
    """When there were as many workers as ever: to start one takes a second of CPU, in which the others serve."""

    @property
    def recovery(self) -> float:
        """From the heal; of what was killed, and nobody but its supervisor starts again, from the kill."""
        return self.recovered - self.healed


@dataclass
class Line:
    """What the requests of one kind of fault, or of none, saw."""

    kind: str
    times: int = 0
    requests: int = 0
    wrong: int = 0
    errors: int = 0
    in_flight: int = 0
    p99_ms: float = 0.0
    added_p99_ms: float = 0.0
    recovery: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


@dataclass
class Result:
    seed: int
    load_seconds: float
    lines: list[Line]
    broken: list[str]


def judged(asked: Sequence[Asked], happened: Sequence[Happened], clients: int) -> list[Line]:
    """Requests by the fault that they met, the first line without one."""
    lines = {"calm": Line("calm")} | {kind: Line(kind) for kind in sorted({one.kind for one in happened})}
    seconds: dict[str, list[float]] = {kind: [] for kind in lines}
    spared = dict.fromkeys(range(len(happened)), clients)
    for one in happened:
        lines[one.kind].times += 1
        lines[one.kind].recovery.append(round(one.recovery, 3))
        lines[one.kind].whole.append(round(one.whole - one.healed, 3))
    for request in asked:
        met = [n for n, one in enumerate(happened) if request.began <= one.whole and request.ended >= one.began]
        kind = happened[met[0]].kind if met else "calm"
        line = lines[kind]
        line.requests += 1
        seconds[kind].append(request.ended - request.began)
        if request.outcome == "ok":
            continue
        if request.outcome == "wrong":
            line.wrong += 1
        elif met and _in_flight(request, happened[met[0]], spared, met[0]):
            line.in_flight += 1
            continue
        else:
            line.errors += 1
        line.examples = [*line.examples, f"{request.outcome}: {request.said}"][:3]
    calm = _p99(seconds["calm"])
    for kind, line in lines.items():
        line.p99_ms = round(1000 * _p99(seconds[kind]), 1)
        line.added_p99_ms = round(line.p99_ms - 1000 * calm, 1)
    return list(lines.values())


def _in_flight(request: Asked, one: Happened, spared: dict[int, int], number: int) -> bool:
    """Whether it failed with the process that was hit: a connection of a killed worker, one for each client; a row that
    only the model could answer, refused while its process was away."""
    if one.victim == "worker" and one.kills and request.outcome == "broken" and spared[number]:
        spared[number] -= 1
        return True
    return one.victim == "model" and one.kills and request.outcome == "refused"


def bounds(lines: Iterable[Line], load_seconds: float) -> list[str]:
    """The bounds that are broken, in words."""
    lines = list(lines)
    requests, errors = sum(line.requests for line in lines), sum(line.errors for line in lines)
    said = [f"{line.kind}: {line.wrong} wrong answers" for line in lines if line.wrong]
    if errors > ERROR_SHARE * requests:
        said.append(f"{errors} of {requests} requests failed, more than {ERROR_SHARE:.2%}")
    for line in lines:
        limit = load_seconds + MODEL_RECOVERY_SECONDS if line.kind == "model_killed" else RECOVERY_SECONDS
        slow = [seconds for seconds in line.recovery if seconds > limit]
        if slow:
            said.append(f"{line.kind}: recovered after {max(slow):.2f} s, more than {limit:.2f} s")
    return said


def table(result: Result) -> str:
    head = ("fault", "times", "requests", "wrong", "errors", "in flight", "recovery s", "whole s", "p99 ms", "added ms")
    lines = [_row(head)]
    for line in result.lines:
        most, whole = (f"{max(seconds):.2f}" if seconds else "–" for seconds in (line.recovery, line.whole))
        counted = (line.times or "–", line.requests, line.wrong, line.errors, line.in_flight)
        lines.append(_row((line.kind, *counted, most, whole, line.p99_ms, line.added_p99_ms)))
        lines += [f"    {example}" for example in line.examples]
    requests, errors = sum(line.requests for line in result.lines), sum(line.errors for line in result.lines)
    wrong, flown = sum(line.wrong for line in result.lines), sum(line.in_flight for line in result.lines)
    lines.append(
        f"{requests} requests, {wrong} wrong, {errors} errors ({errors / max(1, requests):.4%}), {flown} in flight"
    )
    lines.append(f"a model's process loads in {result.load_seconds:.2f} s; seed {result.seed}")
    return "\n".join([*lines, *(f"broken: {one}" for one in result.broken)])


def _p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else 0.0


def _row(cells: Sequence[object]) -> str:
    return f"{cells[0]:<20}" + "".join(f"{cell:>11}" for cell in cells[1:])


async def _happen(chaos: Chaos, kind: Kind, chance: random.Random) -> Happened:
    began = time.monotonic()
    await kind.do(chance.uniform(*HELD_SECONDS))
    healed = began if kind.kills else time.monotonic()
    recovered = await _when(kind.recovered, healed)
    return Happened(kind.name, kind.victim, kind.kills, began, healed, recovered, await _when(chaos.whole, healed))


async def _when(there: Callable[[], Awaitable[bool]], healed: float) -> float:
    while not await there() and time.monotonic() - healed < GIVEN_UP_SECONDS:  # noqa: ASYNC110 - no signal of theirs
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic()


async def _run(chaos: Chaos, seconds: float, seed: int) -> tuple[list[Happened], float]:
    """All kinds in a random order, again and again; what happened, and how long a model's process takes to load."""
    chance, happened, bag = random.Random(seed), list[Happened](), list[Kind]()
    kinds = chaos.kinds()
    killed: dict[str, float] = {}
    model = next(kind for kind in kinds if kind.name == "model_killed")
    load_seconds = (await _happen(chaos, model, chance)).recovery
    over = time.monotonic() + seconds
    async with chaos.load.running():
        await asyncio.sleep(2)
        while time.monotonic() < over:
            bag = bag or chance.sample(kinds, len(kinds))
            kind = bag.pop()
            if kind.kills and time.monotonic() - killed.get(kind.victim, -1e9) < KILL_AGAIN_SECONDS:
                continue
            if kind.kills:
                killed[kind.victim] = time.monotonic()
            happened.append(await _happen(chaos, kind, chance))
            print(f"{over - time.monotonic():5.0f} s left: {kind.name}, {happened[-1].recovery:.2f} s", file=sys.stderr)
            await asyncio.sleep(chance.uniform(*CALM_SECONDS))
    return happened, load_seconds


def measure(folder: Path, seconds: float, seed: int) -> Result:
    """Start a system, do all this to it, stop it."""
    far, data = folder / "far.sock", folder / "data"
    data.mkdir(parents=True)
    make_secret(data / "secret")
    with between(f"unix:{far}", seed=seed) as proxy:
        flags = ("--workers=2", "--near-bytes=65536", f"--redis=redis://{proxy.address}/0")
        with started(built_data("fingerprint"), data, *flags, models=("fingerprint",)) as live:
            load = Load(live.url, seed=seed)
            chaos = Chaos(live, load, proxy, far, seed)
            try:
                happened, load_seconds = asyncio.run(_run(chaos, seconds, seed))
            finally:
                chaos.close()
    lines = judged(load.asked, happened, load.clients)
    return Result(seed, round(load_seconds, 3), lines, bounds(lines, load_seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, help="write the result there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), given.seconds, given.seed)
    if given.json:
        given.json.write_text(json.dumps(asdict(result), indent=1))
    print(table(result))
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
