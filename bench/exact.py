"""Rows through the server are the bits of rows alone: `make verify-exact`.

minilm and mpnet (built on request, 440 MB of wheels), each precision, with the exact pool and with the `ReduceSum` pool
that exporters write. Every length several times over, in random requests of 1 to 32 padded rows, all sent at once to a
model process of one and of two instances; every answer is compared with the row run alone, all 384 or 768 floats.

In ragged batches only the exact pool in fp32 and int8-rowwise may pass (lengths 4 to 62); in fixed shapes everything
must (lengths 4 to 256). `--red` shows that the check can fail: the same in ragged batches, where rows must differ.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.inference.session import SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.models.build.build import build
from foreseen.models.progress import shown
from foreseen.modelspec.artifact import read_record
from foreseen.modelspec.manifest import Manifest, Precision, find
from foreseen.modelspec.shapes import Kind
from foreseen.settings import InferenceSettings
from foreseen.types import Row
from tests.inference.test_app import listening, padded
from tests.models_fixture import PACKAGED

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "matmul-nbits", "int8-rowwise")
LONGEST = {"ragged": 62, "fixed": 256}


class Case(Struct, frozen=True):
    """One built model as it is served."""

    model: str
    precision: Precision
    pool: str
    shapes: Kind
    instances: int

    @property
    def is_exact(self) -> bool:
        """Whether no row may differ."""
        return self.shapes == "fixed" or (self.pool == "exact" and self.precision in ("fp32", "int8-rowwise"))

    @property
    def is_red(self) -> bool:
        """Whether rows must differ. `matmul-nbits` with the exact pool may or may not, by processor."""
        return not self.is_exact and (self.precision, self.pool) != ("matmul-nbits", "exact")

    def __str__(self) -> str:
        return f"{self.model:<7} {self.precision:<13} {self.pool:<11} {self.shapes:<7} {self.instances} instances"


def written(case: Case, folder: Path, fixed_rows: int) -> Path:
    """The packaged manifest with the case's precision, pool and shapes. The folder of its folder."""
    lines = []
    for line in (PACKAGED[0] / case.model / "model.toml").read_text("utf-8").splitlines():
        name = line.partition(" = ")[0]
        if name == "precisions":
            line = f'precisions = ["{case.precision}"]'
        elif name == "exact" and not case.is_exact:
            line = "exact = false"
        elif name == "max_difference" and not case.is_exact:
            line = "max_difference = 1.0"
        elif name == "builder":
            line += f'\noptions = {{ pool = "{case.pool}" }}'
        elif line == "[batching]" and case.shapes == "fixed":
            line += f'\nshapes = "fixed"\nfixed_rows = {fixed_rows}'
        lines.append(line)
    place = folder / f"{case.precision}-{case.pool}-{case.shapes}"
    (place / case.model).mkdir(parents=True, exist_ok=True)
    (place / case.model / "model.toml").write_text("\n".join(lines) + "\n")
    return place


async def compare(
    case: Case, models: Path, data: Path, lengths: np.ndarray, references: dict[Path, list[bytes]]
) -> tuple[int, int, int]:
    """Rows compared, rows that differ, and runs that the process made of them. `references` keeps the rows' answers
    alone by artifact: they do not depend on the count of instances, and take most of the time."""
    manifest = find(case.model, (models,))
    with shown() as say:
        try:
            read_record(data, case.model)
        except SetupError:
            build(manifest, data, quick=True, say=say)
    dice = np.random.default_rng(4)
    rows = [dice.integers(1000, 30000, length) for length in dice.permutation(lengths)]
    requests, at = [], 0
    while at < len(rows):
        requests.append(rows[at : at + int(dice.integers(1, 33))])
        at += len(requests[-1])
    settings = InferenceSettings(
        model=case.model, models=models, data=data, port=0, instances=case.instances, deadline_seconds=3600
    )
    async with listening(settings) as client:
        answers = await asyncio.gather(*(client.binary(padded(request)) for request in requests))
        runs = client.served.runs
    together = np.concatenate([answer.outputs[0].array for answer in answers])
    alone = references.get(data)
    if alone is None:
        alone = references[data] = computed_alone(manifest, data, rows)
    differ = sum(one != embedding.tobytes() for one, embedding in zip(alone, together, strict=True))
    return len(rows), differ, runs


def computed_alone(manifest: Manifest, data: Path, rows: list[np.ndarray]) -> list[bytes]:
    """Each row's answer in a run of its own."""
    session = open_session(manifest, data, SessionPlan())
    answers = [session.run([Row((row,))])[0][0].tobytes() for row in rows]
    session.close()
    return answers


def cases(settings: argparse.Namespace) -> Iterator[Case]:
    """Those that were asked for; in ragged batches only those that must pass, or with --red those that must not."""
    for shapes, model, precision, pool, instances in itertools.product(
        settings.shapes, settings.models, settings.precisions, settings.pools, settings.instances
    ):
        case = Case(model, precision, pool, shapes, instances)
        if case.is_red if settings.red else case.is_exact:
            yield case


def main() -> None:
    """Print a line for each case; status 1 where a row differs that may not, or none that must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/exact-data"))
    parser.add_argument("--models", nargs="+", default=["minilm", "mpnet"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--pools", nargs="+", default=["exact", "reduce-sum"])
    parser.add_argument("--shapes", nargs="+", default=["ragged", "fixed"], choices=["ragged", "fixed"])
    parser.add_argument("--instances", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--longest", type=int, help="tokens; default 62 in ragged batches, 256 in fixed shapes")
    parser.add_argument("--times", type=int, default=2, help="rows of each length")
    parser.add_argument("--fixed-rows", type=int, default=8, help="rows of every batch of fixed shapes")
    parser.add_argument("--red", action="store_true", help="run what must differ")
    settings = parser.parse_args()
    wrong = 0
    references: dict[Path, list[bytes]] = {}
    for case in cases(settings):
        models = written(case, settings.data / "manifests", settings.fixed_rows)
        data = settings.data / f"{case.model}-{case.precision}-{case.pool}-{case.shapes}"
        lengths = np.tile(np.arange(4, 1 + (settings.longest or LONGEST[case.shapes])), settings.times)
        rows, differ, runs = asyncio.run(compare(case, models, data, lengths, references))
        print(f"{case}: {rows:>5} rows in {runs} runs, {differ} differ from the row alone", flush=True)
        wrong += differ > 0 if case.is_exact else differ == 0
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
