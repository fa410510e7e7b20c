"""`foreseen warm --ray`, and a Warmer in somebody's own Ray program: a local Ray of several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.integrations.conftest import ROOT, Run
from tests.live import Live
from tests.questions import fingerprint
from tests.warm.test_warm import digest_of, hit, parquet, rows_of


def words(live: Live, *more: str) -> list[str]:
    return [
        "foreseen",
        "warm",
        *more,
        f"--data={live.data}",
        "--model=fingerprint",
        "--ray",
        "--ray-workers=3",
        "--json",
    ]


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    return folder


def model_rows(live: Live) -> float:
    return live.model_metric("fingerprint", "foreseen_model_rows_total")


def test_the_command_shares_its_files_out(live: Live, tmp_path: Path, ray: Run) -> None:
    """Files of several kinds, results, rejects and counts are what one process makes of them; then all are hits."""
    rows = rows_of(50_000, 3000)
    parquet(folder_of(tmp_path) / "a.parquet", {"x": rows[:2000]}, row_group_size=300)
    lines = [json.dumps({"x": row}) for row in rows[2000:]] + ['{"x": [1]}', "{"]
    (tmp_path / "in" / "b.jsonl").write_text("\n".join(lines))
    before = model_rows(live)
    folder, out = str(tmp_path / "in"), tmp_path / "out"
    told = ray(*words(live, folder, f"--out={out}", "--chunk-rows=250", "--error-budget=1%"))
    done = json.loads(told.stdout)
    assert (done["rows"], done["computed"], done["hit"], done["failed"]) == (3002, 3000, 0, 2)
    assert model_rows(live) - before == 3000
    assert len(Path(done["rejects"]).read_text().splitlines()) == 2
    stored = [row for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert {json.dumps(row["x"]): row["digest"] for row in stored} == {
        json.dumps(row): fingerprint(row) for row in rows
    }
    assert hit(live, *rows[:100], *rows[-100:])
    again = json.loads(ray(*words(live, folder, "--error-budget=1%")).stdout)
    assert (again["hit"], again["computed"], again["failed"]) == (3000, 0, 2)
    brought = json.loads(ray(*words(live, str(out), "--outputs=all")).stdout)
    assert (brought["hit"], brought["imported"]) == (3000, 0)


def test_a_killed_run_does_only_the_rest(live: Live, tmp_path: Path, ray: Run) -> None:
    """Chunks end in any order; those that are safe are not done again, the others are."""
    rows = rows_of(60_000, 4000)
    file = parquet(folder_of(tmp_path) / "a.parquet", {"x": rows}, row_group_size=500)
    out = tmp_path / "out"
    command = words(live, str(file), f"--out={out}", "--chunk-rows=100", "--rows-per-second=1500")
    before = model_rows(live)
    process = subprocess.Popen(
        [str(ROOT / ".venv-ray" / "bin" / command[0]), *command[1:]], start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*"))) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = json.loads(ray(*command).stdout)
    assert (done["rows"], done["failed"]) == (4000, 0)
    stored = [row["x"] for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(stored) == sorted(rows)
    assert 4000 <= model_rows(live) - before <= 4000 + 3 * 2 * 100
    assert hit(live, *rows[::20])


def test_through_a_proxy(live: Live, tmp_path: Path, ray: Run) -> None:
    """With --url the nodes need neither the secret nor Redis."""
    rows = rows_of(70_000, 600)
    file = parquet(tmp_path / "a.parquet", {"x": rows}, row_group_size=100)
    command = [
        "foreseen",
        "warm",
        file,
        "--model=fingerprint",
        f"--url={live.url}",
        "--ray",
        "--ray-workers=2",
        "--no-stand-back",
        "--json",
    ]
    done = json.loads(ray(*command, "--chunk-rows=100").stdout)
    assert (done["mode"], done["computed"], done["failed"]) == ("url", 600, 0)
    assert hit(live, *rows)


def test_what_stops_a_worker_is_one_line(live: Live, tmp_path: Path, ray: Run) -> None:
    """Not a page of another process's traceback; nothing is marked as done."""
    file = parquet(
        tmp_path / "a.parquet",
        {"x": rows_of(71_000, 10), "foreseen.digest": ["ab" * 32] * 10, "digest": [[1] * 4] * 10, "seal": [[1]] * 10},
    )
    told = ray(*words(live, str(file), "--outputs=all"), check=False)
    assert told.returncode == 1
    (line,) = told.stderr.splitlines()
    assert told.stdout == ""
    assert line.startswith(f"foreseen: {file}: its rows 0 to 10 hold predictions of model abab")


def test_a_warmer_in_a_program_of_ones_own(live: Live, tmp_path: Path, ray: Run) -> None:
    """`map_batches(Warmer, fn_constructor_args=(plan,))`: two actors, each with connections of its own."""
    rows = rows_of(72_000, 800)
    file = parquet(tmp_path / "a.parquet", {"x": rows}, row_group_size=50)
    program = ROOT / "tests" / "integrations" / "own_program.py"
    told = json.loads(ray("python", program, live.data, digest_of(live), file).stdout.splitlines()[-1])
    assert told == {"computed": 800, "processes": 2}
    assert hit(live, *rows)
