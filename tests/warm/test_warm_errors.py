"""What can be wrong with a batch run, at the command line: one line that says what to do, and nothing half-written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foreseen.paths import redis_socket
from foreseen.warm.write.bulk_redis import BulkRedis
from tests.live import Live
from tests.warm.test_warm import digest_of, hit, parquet, predicted, rows_of

COMMAND = [sys.executable, "-m", "foreseen.cli", "warm", "--no-stand-back"]
"""Not of the idle class: these tests are to end on a machine that is busy, too."""
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""Root reads everything; without these capabilities it is anybody."""


def run(live: Live, *words: object, before: list[str] | None = None) -> tuple[int, str, list[str]]:
    """Status, stdout, and the lines of stderr."""
    told = [*COMMAND, *map(str, words), f"--data={live.data}", "--model=fingerprint"]
    done = subprocess.run([*(before or []), *told], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr.splitlines()


def line(live: Live, *words: object, before: list[str] | None = None) -> str:
    """The one line that a run ends with; status 1 and no word on stdout."""
    status, said, lines = run(live, *words, before=before)
    assert (status, said, len(lines)) == (1, "", 1), (status, said, lines)
    return lines[0].removeprefix("foreseen: ")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_wrong_digest_and_wrong_column(live: Live, tmp_path: Path, out: Path) -> None:
    """Neither is imported, neither leaves a part."""
    rows = rows_of(100_000, 3)
    strange = parquet(tmp_path / "strange.parquet", predicted(rows), "ab" * 32)
    said = line(live, strange, "--outputs=all")
    assert said.startswith(f"{strange}: was computed by model abababababababab…, in force is {digest_of(live)[:16]}…; ")
    assert said.endswith("predict it again with the model in force (foreseen warm without --outputs)")
    column = parquet(tmp_path / "column.parquet", {"y": rows})
    said = line(live, column, f"--out={out}")
    assert said == f"{column}: no column for 'x'; the file has y; give --map COLUMN=x"
    said = line(live, column, "--map=z=x", f"--out={out}")
    assert said == f"{column}: there is no column 'z'; the file has y"
    said = line(live, parquet(tmp_path / "no.parquet", {"x": rows}), "--outputs=all", f"--digest={digest_of(live)}")
    assert said.endswith("no column for 'digest'; the file has x; give --outputs COLUMN=digest")
    assert not out.exists()
    assert not hit(live, *rows)


def test_ragged_rows(live: Live, tmp_path: Path, out: Path) -> None:
    """They are set aside, the others are warmed and stored; the status says so, and the line which was the first."""
    rows = rows_of(100_100, 4)
    file = parquet(tmp_path / "a.parquet", {"x": [rows[0], rows[1][:3], rows[2], [], rows[3]]})
    status, told, (said,) = run(live, file, f"--out={out}", "--json")
    assert (status, json.loads(told)["computed"], json.loads(told)["failed"]) == (1, 3, 2)
    assert said.startswith(
        f"foreseen: 2 of 5 rows failed, the first: row 1 of {file}: x: has 3 elements, must have 16; "
    )
    assert pq.read_table(out).num_rows == 3
    assert hit(live, rows[0], rows[2], rows[3])
    (tmp_path / "b.csv").write_text('x\n"[1, 2]"\n1,2\n')
    status, _, (said,) = run(live, tmp_path / "b.csv")
    assert (status, "2 of 2 rows failed" in said) == (1, True)


def test_empty_and_truncated_files(live: Live, tmp_path: Path, out: Path) -> None:
    """Found before anything is done; one whose end is right and whose middle is not, when it is read."""
    rows = rows_of(100_200, 4000)
    good = parquet(tmp_path / "good.parquet", {"x": rows}, row_group_size=1000)
    (tmp_path / "empty.parquet").touch()
    assert line(live, good, tmp_path / "empty.parquet", f"--out={out}").endswith(
        "is empty; remove it, or write it again"
    )
    raw = good.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(raw[: len(raw) // 2])
    assert "cut.parquet: is cut short or not what its name says" in line(live, tmp_path / "cut.parquet", f"--out={out}")
    assert not out.exists()
    middle = len(raw) // 2
    (tmp_path / "hurt.parquet").write_bytes(raw[:middle] + b"\xff" * 2000 + raw[middle + 2000 :])
    said = line(live, tmp_path / "hurt.parquet", f"--out={out}", "--chunk-rows=500")
    assert said.startswith(f"{tmp_path / 'hurt.parquet'}: ")
    assert all(pq.read_table(part).num_rows == 500 for part in out.glob("*"))  # whole ones only
    assert not list(out.glob(".*"))


def test_missing_permission(live: Live, tmp_path: Path, out: Path) -> None:
    """To read the file, to write the folder, the root secret, the checkpoint; to write in Redis."""
    rows = rows_of(104_300, 3)
    file, shut = parquet(tmp_path / "a.parquet", {"x": rows}), parquet(tmp_path / "shut.parquet", {"x": rows})
    shut.chmod(0)
    said = line(live, shut, before=UNPRIVILEGED)
    assert said == f"{shut}: permission denied; make it readable for this user (chmod, or the store's policy)"
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    said = line(live, file, f"--out={folder / 'out'}", before=UNPRIVILEGED)
    assert said == f"{folder / 'out'}: Permission denied; give --out a folder that can be written"
    said = line(live, file, f"--checkpoint={folder / 'c'}", before=UNPRIVILEGED)
    assert said == f"{folder / 'c'}: Permission denied; give --checkpoint a folder that can be written"
    (tmp_path / "secret").write_bytes(b"x" * 32)
    (tmp_path / "secret").chmod(0)
    assert "Permission denied" in line(live, file, f"--secret-file={tmp_path / 'secret'}", before=UNPRIVILEGED)
    pipe = BulkRedis(f"unix://{redis_socket(live.data)}")
    try:
        pipe._ask(b"ACL", b"SETUSER", b"reader", b"on", b">pass", b"~*", b"+get", b"+mget")
        said = line(live, file, f"--redis=unix://reader:pass@{redis_socket(live.data)}")
        assert said.startswith(f"redis unix://{redis_socket(live.data)}: NOPERM ")
        assert said.endswith("correct it and run the same command to go on")
        assert "pass" not in said
        said = line(live, file, f"--redis=unix://reader:wrong@{redis_socket(live.data)}")
        assert "WRONGPASS" in said
    finally:
        pipe._ask(b"ACL", b"DELUSER", b"reader")
        pipe.close()
    assert not hit(live, *rows)


def test_an_import_through_a_proxy_takes_the_operators_token(live: Live, tmp_path: Path) -> None:
    """None, a wrong one, then the right one; a prediction of another model is refused with it, too."""
    rows = rows_of(104_400, 300)
    file = parquet(tmp_path / "a.parquet", predicted(rows), digest_of(live))
    words = [*COMMAND, str(file), "--model=fingerprint", f"--url={live.url}", f"--data={tmp_path}", "--outputs=all"]

    def said(*more: str) -> tuple[int, str, str]:
        done = subprocess.run([*words, "--json", *more], capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    missing = f"an import is a cache write and needs the proxy's admin token: {tmp_path}/admin-token: No such file"
    status, _, told = said()
    assert (status, missing in told, len(told.splitlines())) == (1, True, 1)
    (tmp_path / "wrong").write_text("a" * 64)
    status, _, told = said(f"--admin-token-file={tmp_path / 'wrong'}")
    assert (status, len(told.splitlines())) == (1, 1)
    assert "this route needs an operator's key; give --admin-token-file" in told
    assert not hit(live, rows[0])  # which asks, hence computes it
    token = f"--admin-token-file={live.data / 'admin-token'}"
    before = live.model_metric("fingerprint", "foreseen_model_rows_total")
    status, told, why = said(token)
    assert status == 0, why
    done = json.loads(told)
    assert (done["hit"], done["imported"], done["failed"]) == (1, 299, 0)
    status, told, why = said(token)
    assert status == 0, why
    assert json.loads(told)["hit"] == 300
    assert hit(live, *rows)
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") == before
    assert "omit --url" in said(token, "--verify=1%")[2]


def test_what_the_import_route_refuses(live: Live) -> None:
    """Without a token 401; another model's digest, outputs that are not the model's, no digest: 400 by name."""
    (row,) = rows_of(104_900, 1)
    token = {"Authorization": "Bearer " + (live.data / "admin-token").read_text().strip()}
    path = "/v2/models/fingerprint/import"

    def body(digest: str | None = None, **outputs: tuple[str, list[int], list[Any]]) -> dict[str, Any]:
        given = {"output.digest": ("INT64", [1, 4], [1, 2, 3, 4]), "output.seal": ("INT64", [1, 1], [1])} | outputs
        inputs: list[Any] = [{"name": n, "datatype": d, "shape": s, "data": v} for n, (d, s, v) in given.items()]
        inputs.append({"name": "x", "datatype": "INT64", "shape": [1, 16], "data": row})
        return {"inputs": inputs, "parameters": {} if digest == "" else {"digest": digest or digest_of(live)}}

    assert live.post(path, body())[0] == 401
    for said, wrong in {
        "parameters.digest: the outputs are of model abab": body("ab" * 32),
        "parameters.digest: give the digest": body(""),
        "inputs: the outputs are not those of 'fingerprint'": body(**{"output.digest": ("INT64", [1, 3], [1, 2, 3])}),
        "inputs.output.digest.datatype: is FP64, must be INT64": body(**{"output.digest": ("FP64", [1, 4], [1.0] * 4)}),
        "inputs.foreseen.made_at": body(**{"foreseen.made_at": ("BOOL", [1], [True])}),
    }.items():
        status, _, told = live.post(path, wrong, token)
        assert (status, said in json.loads(told)["error"]) == (400, True), told
    assert not hit(live, row)


@pytest.mark.parametrize("child", ["far", "model:fingerprint"])
def test_nothing_is_waited_for_without_end(own: Live, tmp_path: Path, child: str) -> None:
    """A Redis or a model that is stopped, not gone: after --patience-seconds one line; later the run goes on."""
    rows = rows_of(105_000, 50)
    file = parquet(tmp_path / "a.parquet", {"x": rows})
    plain = parquet(tmp_path / "b.parquet", predicted(rows), digest_of(own))
    words = [file] if child != "far" else [plain, "--outputs=all"]
    own.signal(child, signal.SIGSTOP)
    try:
        said = line(own, *words, "--patience-seconds=1")
    finally:
        own.signal(child, signal.SIGCONT)
    assert ("said nothing for 1 s; run the same command" if child == "far" else "start it (foreseen up)") in said
    status, told, _ = run(own, *words, "--json")
    assert (status, json.loads(told)["failed"]) == (0, 0)
    assert json.loads(run(own, file, "--json")[1])["hit"] == 50  # in Redis; the proxy may not trust it again yet


def test_killed_ten_times_at_random(own: Live, tmp_path: Path, out: Path) -> None:
    """kill -9 of real processes: the union of the results is complete, and no more than one batch a kill is computed
    twice."""
    rows, batch = rows_of(0, 5000), 100
    file = parquet(tmp_path / "a.parquet", {"x": rows}, row_group_size=700)
    words = [str(file), f"--data={own.data}", "--model=fingerprint", f"--out={out}", "--json"]
    words += [f"--chunk-rows={batch}", "--batch-ms=1", "--rows-per-second=2000"]
    before = own.model_metric("fingerprint", "foreseen_model_rows_total")
    dice, kills = random.Random(), 0
    while kills < 10:
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
        try:
            process.wait(dice.uniform(0.5, 1.3))
            break  # through before ten kills: a fast machine
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += process.returncode == -signal.SIGKILL
    done = json.loads(subprocess.run([*COMMAND, *words], check=True, capture_output=True, text=True).stdout)
    assert (done["rows"], done["failed"]) == (5000, 0)
    stored = [row["x"] for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(stored) == sorted(rows)
    computed = own.model_metric("fingerprint", "foreseen_model_rows_total") - before
    assert 5000 <= computed <= 5000 + kills * batch
    assert hit(own, *rows[::50])
