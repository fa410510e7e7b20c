"""Somebody's own Ray program: the Warmer itself in `map_batches`, as docs/batch.md shows it.

python own_program.py DATA DIGEST FILE      prints {"computed": …, "hit": …, "processes": …}
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import ray

from foreseen import models
from foreseen.modelspec.manifest import find
from foreseen.tenants.tenant import PUBLIC
from foreseen.warm import Plan, Warmer


class Told(Warmer):
    """A Warmer that also says which process it is in."""

    def __call__(self, table: pa.Table) -> pa.Table:
        made = super().__call__(table)
        return made.append_column("process", pa.array([os.getpid()] * made.num_rows))


def main() -> None:
    data, digest, file = sys.argv[1:]
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)  # two actors and readers
    manifest = find("fingerprint", (Path(models.__file__).parent,))
    plan = Plan(manifest=manifest, scope=PUBLIC, digest=digest, data=Path(data), rows_per_second=150)
    rows = ray.data.read_parquet(file).repartition(16)  # enough for two
    done = rows.map_batches(Told, fn_constructor_args=(plan,), batch_format="pyarrow", batch_size=50, concurrency=2)
    table = pa.concat_tables(done.iter_batches(batch_size=None, batch_format="pyarrow"))
    results = Counter(table.column("result").to_pylist())
    print(json.dumps({**results, "processes": len(set(table.column("process").to_pylist()))}))
    ray.shutdown()


if __name__ == "__main__":
    main()
