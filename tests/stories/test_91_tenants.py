"""Several tenants on one system: what is asked, kept and fetched by one is never another's."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from foreseen.tenants.edit_keys import add_key
from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM
from tests.stories.test_60_start_and_stop import foreseen
from tests.stories.test_74_nothing_leaks import ask_operators
from tests.stories.test_76_webhooks import Sink

seeds = itertools.count(910_000)
WORKERS = 3
SHARING = ("pub1", "pub2")
"""Tenants with `scope = "public"`."""
TENANTS = ("a", "b", "team1", "team2", *SHARING, "narrow")


def key_of(tenant: str) -> dict[str, str]:
    return {"X-API-Key": f"the key of {tenant}"}


def hashed(tenant: str) -> str:
    return "sha256:" + hashlib.sha256(f"the key of {tenant}".encode()).hexdigest()


def keys_text(*left_out: str) -> str:
    scopes = {"team1": "team", "team2": "team", "pub1": "public", "pub2": "public"}
    tables = []
    for name in TENANTS:
        models, scope = "min*" if name == "narrow" else "*", scopes.get(name, "own")
        tables.append(f'[tenant.{name}]\nkeys = ["{hashed(name)}"]\nscope = "{scope}"\nmodels = ["{models}"]\n')
    return "".join(table for name, table in zip(TENANTS, tables, strict=True) if name not in left_out)


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """A receiver of webhooks."""
    with Sink().running() as one:
        yield one


@pytest.fixture(scope="module")
def shared(built: Path, tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> Iterator[Live]:
    """A system with several workers and tenants; it became ready, so its own first predictions went through."""
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "keys.toml").write_text(keys_text())
    flags = (f"--keys-file={folder / 'keys.toml'}", f"--workers={WORKERS}", f"--webhook-allow={sink.url}")
    with started(built, folder / "data", *flags) as system:
        yield system


def admin(live: Live) -> dict[str, str]:
    return {"Authorization": f"Bearer {(live.data / 'admin-token').read_text().strip()}"}


def get(live: Live, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    return live.ask("GET", path, None, headers)


def rows(live: Live, model: str = "fingerprint") -> float:
    return live.model_metric(model, "foreseen_model_rows_total")


def test_one_text_of_two_tenants_is_two_rows_and_of_a_shared_scope_one(shared: Live) -> None:
    """Each of `a` and `b` has an entry of its own; `team1` and `team2`, and the public ones, share one."""
    question = ask_fingerprint(numbers(next(seeds)))
    before = rows(shared)
    for tenants, more in ((("a",), 1), (("b",), 2), (("team1", "team2"), 3), (SHARING, 4)):
        for tenant, _ in itertools.product(tenants, range(4)):
            status, _, body = shared.post(FINGERPRINT, question, key_of(tenant))
            assert status == 200, body
        assert rows(shared) - before == more, tenants


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (FINGERPRINT, ask_fingerprint(numbers(1))),
        ("/v1/models/fingerprint:predict", {"instances": [numbers(1)]}),
        ("/v1/embeddings", {"model": "minilm", "input": "x"}),
        ("/v1/files", b""),
        ("/v2/predictions:batch", b"{}"),
    ],
)
def test_a_request_without_a_key_is_refused_in_its_dialects_form(shared: Live, path: str, body: Any) -> None:
    """401, with a challenge; nothing of the key that was sent is repeated."""
    for headers in ({}, {"Authorization": "Bearer geheim"}, {"api-key": "geheim"}, key_of("a") | {"api-key": "geheim"}):
        status, told, content = shared.post(path, body, headers)
        assert status == 401
        assert told["www-authenticate"].startswith("Bearer")
        document = json.loads(content)
        said = document["error"] if "/v1/" in path and ":" not in path else document
        assert said["code"] == "unauthorized"
        assert b"geheim" not in content


def test_a_model_that_is_not_the_tenants_is_403_in_each_dialect(shared: Live) -> None:
    """Also in a line of a batch, and for its metadata; lists leave it out."""
    key = key_of("narrow")
    for path, body in (
        (FINGERPRINT, ask_fingerprint(numbers(1))),
        ("/v1/models/fingerprint:predict", {"instances": [numbers(1)]}),
    ):
        status, _, content = shared.post(path, body, key)
        assert (status, json.loads(content)["code"]) == (403, "model_not_allowed")
    status, _, content = shared.post("/v1/embeddings", {"model": "fingerprint", "input": "x"}, key)
    assert (status, json.loads(content)["error"]["code"]) == (403, "model_not_allowed")
    assert get(shared, "/v2/models/fingerprint", key)[0] == 403
    assert json.loads(get(shared, "/v2/models", key)[2]) == {"models": ["minilm"]}
    assert [one["id"] for one in json.loads(get(shared, "/v1/models", key)[2])["data"]] == ["minilm"]
    assert shared.post(MINILM, ask_minilm("of the narrow tenant"), key)[0] == 200
    line = json.dumps({"model": "fingerprint", **ask_fingerprint(numbers(1))}).encode()
    _, headers, _ = shared.post("/v2/predictions:batch", line, key)
    get(shared, headers["location"], key | {"Prefer": "wait=20"})
    (ended,) = get(shared, f"{headers['location']}/result", key)[2].splitlines()
    assert json.loads(ended)["error"]["code"] == "model_not_allowed"


def test_a_known_head_and_another_body_cannot_reach_a_model_that_is_not_allowed(shared: Live) -> None:
    """OpenAI's bodies name the model: the head that was learned with an allowed one does not open another."""
    key = key_of("narrow") | {"Content-Type": "application/json"}
    allowed = {"model": "minilm", "input": "learned by the narrow tenant"}
    for _ in range(3 * WORKERS):
        assert shared.post("/v1/embeddings", allowed, key)[0] == 200
    for _ in range(3 * WORKERS):
        assert shared.post("/v1/embeddings", {"model": "fingerprint", "input": "x"}, key)[0] == 403


def test_health_is_open_and_metrics_are_for_operators(shared: Live) -> None:
    """Probes carry no key. A tenant's key does not open the metrics, nor the statistics, which count all tenants'."""
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/minilm/ready"):
        assert shared.get(path)[0] == 200, path
    for path in ("/metrics", "/metrics/minilm", "/v2/models", "/v2/models/minilm", "/v2", "/nothing"):
        assert shared.get(path)[0] == 401, path
    for path in ("/metrics", "/v2/models/stats", "/v2/models/minilm/stats", "/v2/models/minilm/versions/1/stats"):
        assert get(shared, path, key_of("a"))[0] == 401, path
        assert shared.get(path)[0] == 401, path
    stats = json.loads(get(shared, "/v2/models/stats", admin(shared))[2])["model_stats"]
    assert {one["name"] for one in stats} == {"minilm", "fingerprint"}
    assert get(shared, "/v2/models/minilm/stats", admin(shared))[0] == 200
    assert get(shared, "/metrics", admin(shared))[0] == 200
    assert get(shared, "/metrics/minilm", admin(shared))[0] == 200


def test_tickets_are_their_tenants_alone(shared: Live) -> None:
    """Neither look, fetch, stream nor cancel works with another key, also in a shared scope, where the job is one."""
    for mine, other in (("a", "b"), ("pub1", "pub2")):
        question = ask_fingerprint(*(numbers(next(seeds)) for _ in range(3)))
        asked = key_of(mine) | {"Prefer": "respond-async"}
        status, headers, _ = shared.post(FINGERPRINT, question, asked)
        assert status == 202
        place = headers["location"]
        for path in (place, f"{place}/result"):
            assert get(shared, path, key_of(other))[0] == 404
            assert shared.get(path)[0] == 401
        assert get(shared, place, key_of(other) | {"Accept": "text/event-stream"})[0] == 404
        assert shared.ask("DELETE", place, None, key_of(other))[0] == 404
        assert json.loads(get(shared, place, key_of(mine) | {"Prefer": "wait=20"})[2])["state"] == "succeeded"
        assert get(shared, f"{place}/result", key_of(mine))[0] == 200


def test_an_idempotency_key_is_its_tenants(shared: Live) -> None:
    """The same key of another tenant, with another body, is no conflict and gives no ticket away."""
    once = {"Idempotency-Key": "order-7", "Prefer": "respond-async"}
    one, two = (ask_fingerprint(numbers(next(seeds))) for _ in range(2))
    tickets = [shared.post(FINGERPRINT, body, key_of(name) | once) for name, body in (("a", one), ("b", two))]
    assert [ticket[0] for ticket in tickets] == [202, 202]
    again = shared.post(FINGERPRINT, one, key_of("a") | once)
    assert json.loads(again[2])["id"] == json.loads(tickets[0][2])["id"] != json.loads(tickets[1][2])["id"]


def verifiers(live: Live, tenant: str) -> list[Webhook]:
    """What a tenant's receivers verify with, as an operator hands it out."""
    done = foreseen("keys", "webhook-secret", tenant, f"--data={live.data}")
    assert done.returncode == 0, done.stderr
    return [Webhook(line) for line in done.stdout.split()]


def test_a_webhook_is_its_tenants(shared: Live, sink: Sink) -> None:
    """Two tenants of one scope ask the same, so there is one job: each is called with its own ticket, signed with a
    secret of its own. One cancels, under the idempotency key of the other: the other's is not cancelled."""
    question, tickets = ask_fingerprint(numbers(next(seeds))), {}
    shared.signal("worker", signal.SIGSTOP)
    try:
        for name in ("team1", "team2"):
            once = {"Prefer": "respond-async", "Idempotency-Key": "invoice-9", "Foreseen-Webhook": f"{sink.url}/{name}"}
            status, headers, body = shared.post(FINGERPRINT, question, key_of(name) | once)
            assert status == 202, body
            tickets[name] = headers["location"]
        assert shared.ask("DELETE", tickets["team1"], None, key_of("team2"))[0] == 404
        assert shared.ask("DELETE", tickets["team1"], None, key_of("team1"))[0] == 200
    finally:
        shared.signal("worker", signal.SIGCONT)
    came = {path.strip("/"): (told, body) for path, told, body in (sink.next(), sink.next())}
    assert came.keys() == tickets.keys()
    for name, other, state in (("team1", "team2", "cancelled"), ("team2", "team1", "succeeded")):
        told, body = came[name]
        (own,) = verifiers(shared, name)
        event = own.verify(body, told)
        assert (event["type"], tickets[name].rpartition("/")[2]) == (f"prediction.{state}", event["data"]["id"])
        assert tickets[other].rpartition("/")[2] not in body.decode()
        assert get(shared, tickets[name], key_of(other))[0] == 404
        for wrong in (*verifiers(shared, other), *verifiers(shared, "public")):
            with pytest.raises(WebhookVerificationError):
                wrong.verify(body, told)
    assert sink.came.empty()


def _form(content: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    head += b'Content-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_files_and_batches_are_their_tenants(shared: Live) -> None:
    """An id that is known to another tenant leads nowhere; a batch of it cannot be made, seen, cancelled or fetched."""
    line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": "of a"}}
    body, form = _form(json.dumps(line).encode())
    file = json.loads(shared.post("/v1/files", body, form | key_of("a"))[2])["id"]
    made = {"input_file_id": file, "endpoint": "/v1/embeddings"}
    assert shared.post("/v1/batches", made, key_of("b"))[0] == 404
    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
        assert get(shared, path, key_of("b"))[0] == 404
        assert get(shared, path, key_of("a"))[0] == 200
    assert shared.ask("DELETE", f"/v1/files/{file}", None, key_of("b"))[0] == 404
    batch = json.loads(shared.post("/v1/batches", made, key_of("a"))[2])
    ticket = batch["id"].removeprefix("batch_")
    assert get(shared, f"/v1/batches/{batch['id']}", key_of("b"))[0] == 404
    assert shared.post(f"/v1/batches/{batch['id']}/cancel", b"", key_of("b"))[0] == 404
    get(shared, f"/v2/predictions/{ticket}", key_of("a") | {"Prefer": "wait=20"})
    out = f"/v1/files/file-out_{ticket}/content"
    assert get(shared, out, key_of("b"))[0] == 404
    assert b'"status_code":200' in get(shared, out, key_of("a"))[2]


def test_explain_and_import_see_one_tenants_entries(shared: Live) -> None:
    """A tenant explains its own rows; an operator names the tenant, or explains the public scope."""
    question = ask_fingerprint(numbers(next(seeds)))
    explain = FINGERPRINT.replace("/infer", "/explain")
    for _ in range(2 * WORKERS):
        shared.post(FINGERPRINT, question, key_of("a"))

    def where(headers: dict[str, str]) -> str:
        status, _, content = shared.post(explain, question, headers)
        assert status == 200, content
        return str(json.loads(content)["rows"][0]["where"])

    operator = admin(shared)
    assert where(key_of("a")) != "nowhere"
    assert where(operator | {"Foreseen-Tenant": "a"}) != "nowhere"
    assert where(key_of("b")) == where(operator) == where(operator | {"Foreseen-Tenant": "b"}) == "nowhere"
    assert shared.post(explain, question, operator | {"Foreseen-Tenant": "nobody"})[0] == 400
    assert shared.post(explain, question, {"Authorization": "Bearer x"})[0] == 401
    digest = json.loads(shared.post(explain, question, key_of("a"))[2])["digest"]
    row = numbers(next(seeds))
    outputs = json.loads(shared.post(FINGERPRINT, ask_fingerprint(row), key_of("a"))[2])["outputs"]
    assert outputs[0]["data"] == fingerprint(row)
    given = [*ask_fingerprint(row)["inputs"], *({**one, "name": f"output.{one['name']}"} for one in outputs)]
    body = {"inputs": given, "parameters": {"digest": digest}}
    path = FINGERPRINT.replace("/infer", "/import")
    assert shared.post(path, body, key_of("b"))[0] == 401
    status, _, content = shared.post(path, body, operator | {"Foreseen-Tenant": "b"})
    assert status == 200, content
    before = rows(shared)
    assert shared.post(FINGERPRINT, ask_fingerprint(row), key_of("b"))[0] == 200
    assert rows(shared) == before
    assert shared.post(FINGERPRINT, ask_fingerprint(row), key_of("team1"))[0] == 200
    assert rows(shared) == before + 1


def cached(live: Live, tenant: str, question: Any) -> set[bool]:
    """What many connections, so all workers, say of a tenant's row: is it in the cache?"""
    headers = key_of(tenant) | {"Cache-Control": "only-if-cached"}
    statuses = {live.post(FINGERPRINT, question, headers)[0] for _ in range(8 * WORKERS)}
    assert statuses <= {200, 504}
    return {status == 200 for status in statuses}


def held_by(live: Live, question: Any, *tenants: str) -> None:
    """Get a row into the near tier of every worker, as each tenant's."""
    for tenant, _ in itertools.product(tenants, range(8 * WORKERS)):
        assert live.post(FINGERPRINT, question, key_of(tenant))[0] == 200
    assert {tenant: cached(live, tenant, question) for tenant in tenants} == {tenant: {True} for tenant in tenants}


@pytest.mark.parametrize(
    ("tenant", "gone", "said"),
    [
        ("a", ("a",), "tenant a, its own scope"),
        ("team1", ("team1", "team2"), "tenant team1, its own scope and scope team, shared with team2"),
        ("public", SHARING, "scope public, of callers without a tenant, shared with pub1, pub2"),
    ],
)
def test_one_tenants_entries_are_purged_and_no_others(
    shared: Live, tenant: str, gone: tuple[str, ...], said: str
) -> None:
    """Acknowledged when every worker has forgotten them, with their tickets' results; what others hold stays, and what
    is computed afterwards is a hit again."""
    question, tenants = ask_fingerprint(numbers(next(seeds))), ("a", "b", "team1", "team2", *SHARING)
    held_by(shared, question, *tenants)
    ask = {"Prefer": "respond-async", "Cache-Control": "no-cache"}
    tickets = {name: shared.post(FINGERPRINT, question, key_of(name) | ask)[1]["location"] for name in tenants}
    for name, ticket in tickets.items():
        get(shared, ticket, key_of(name) | {"Prefer": "wait=20"})
        assert get(shared, f"{ticket}/result", key_of(name))[0] == 200
    done = foreseen("purge", f"--data={shared.data}", f"--tenant={tenant}")
    assert done.returncode == 0, done.stderr
    assert f"purged {said}: generation " in done.stdout
    for name in tenants:
        assert cached(shared, name, question) == {name not in gone}, name
        assert get(shared, f"{tickets[name]}/result", key_of(name))[0] == (410 if name in gone else 200), name
    explained = shared.post(FINGERPRINT.replace("/infer", "/explain"), question, key_of(gone[0]))
    assert json.loads(explained[2])["rows"][0]["reason"] == "purged"
    held_by(shared, question, *gone)


def test_a_tenant_cannot_purge_and_a_misspelt_one_is_not_called_purged(shared: Live) -> None:
    """Neither on the operators' listener, nor on the public one. An unknown name is 404, with near names."""
    assert ask_operators(shared, "the key of a", {"tenant": "b"})[0] == 401
    assert shared.post("/admin/purge", {"tenant": "b"}, key_of("a"))[0] == 404
    token = (shared.data / "admin-token").read_text().strip()
    status, said = ask_operators(shared, token, {"tenant": "team3"})
    assert (status, json.loads(said)["code"]) == (404, "unknown_target")
    assert "near names: team2, team1" in json.loads(said)["error"]
    assert ask_operators(shared, token, {"tenant": "a", "model": "minilm"})[0] == 400
    assert ask_operators(shared, token, {"tenant": "team3", "even_if_unknown": True})[0] == 200


def test_a_revoked_key_is_refused_by_every_worker_and_no_other_request_fails(shared: Live) -> None:
    """Within two seconds, while all ask what is known by its bytes; given back, it works again."""
    file = shared.data.parent / "keys.toml"
    question = json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()
    stop, failed, last = threading.Event(), [], {"a": 0.0}

    def ask(tenant: str) -> None:
        while not stop.is_set():
            status = shared.post(FINGERPRINT, question, key_of(tenant))[0]
            if status == 200:
                last[tenant] = time.monotonic()
            elif tenant != "a" or status != 401:
                failed.append((tenant, status))

    threads = [threading.Thread(target=ask, args=(tenant,)) for tenant in ("a", "a", "b", "pub1")]
    for thread in threads:
        thread.start()
    try:
        while not last.keys() >= {"a", "b", "pub1"}:
            time.sleep(0.01)
        beside = file.with_suffix(".new")
        beside.write_text(keys_text("a"))
        beside.rename(file)
        revoked = time.monotonic()
        while time.monotonic() < max(revoked, last["a"]) + 2.5:
            time.sleep(0.05)
        assert last["a"] < revoked + 2.0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        file.write_text(keys_text())
    assert failed == []
    begun = refused = time.monotonic()
    while time.monotonic() < refused + 1.5:  # no worker is certain to answer soon: as long as all need to see the file
        if shared.post(FINGERPRINT, question, key_of("a"))[0] != 200:
            refused = time.monotonic()
        assert time.monotonic() < begun + 20


def test_bodies_of_two_tenants_are_two_bodies(shared: Live) -> None:
    """The same bytes under two keys, and the same head with two bodies, many times and mixed: each has its own answer,
    in floats and base64."""
    text = "asked by two tenants again and again"
    for number in range(24):
        tenant = ("a", "b", "pub1", "team1")[number % 4]
        coded = {"encoding_format": "base64"} if number % 3 else {}
        status, headers, body = shared.post(
            "/v1/embeddings", {"model": "minilm", "input": text, **coded}, key_of(tenant)
        )
        assert status == 200
        first = json.loads(body)["data"][0]["embedding"]
        assert isinstance(first, str) == bool(coded)
        assert not coded or len(base64.b64decode(first)) == 384 * 4
        if number < 4:
            assert "miss" in headers["cache-status"]


def test_a_viewer_looks_and_an_operator_acts_and_all_is_in_the_audit_log(
    built: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Roles by their keys; a line for each action and each refused credential, whatever the log level; no key in it."""
    data, file = tmp_path / "d", tmp_path / "keys.toml"
    data.mkdir(mode=0o700)
    operator, viewer = (
        add_key(data / "admin-keys.toml", "alice", "operator"),
        add_key(data / "admin-keys.toml", "grafana", "viewer"),
    )
    tenant, question = add_key(file, "a"), ask_fingerprint(numbers(next(seeds)))
    with started(built, data, f"--keys-file={file}", "--log-level=error", models=["fingerprint"]) as live:
        for key, status in ((viewer, 200), (operator, 200), (tenant, 401), ("geheim", 401)):
            assert get(live, "/metrics", {"Authorization": f"Bearer {key}"})[0] == status
        explain = FINGERPRINT.replace("/infer", "/explain")
        assert live.post(explain, question, {"api-key": viewer, "Foreseen-Tenant": "a"})[0] == 200
        assert live.post(FINGERPRINT.replace("/infer", "/import"), question, {"api-key": viewer})[0] == 403
        assert live.post(FINGERPRINT, question, {"api-key": "geheim"})[0] == 401
        for key, status in ((viewer, 403), (operator, 200), (tenant, 401)):
            assert ask_operators(live, key, {"model": "fingerprint"})[0] == status
    text = capfd.readouterr().err
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    said = [(line["action"], line["actor"], line["passed"]) for line in lines if line["event"] == "audit"]
    assert ("explain", "grafana", True) in said
    assert ("import", "grafana", False) in said
    assert ("purge", "grafana", False) in said
    assert ("purge", "alice", True) in said
    assert [one[0] for one in said].count("metrics") == 2
    assert said.count(("request", "", False)) == 1
    assert said.count(("purge", "", False)) == 1
    for secret in (operator, viewer, tenant, "geheim", "fsk_"):
        assert secret not in text


def test_a_batch_run_fills_one_tenants_entries(shared: Live, tmp_path: Path) -> None:
    """Beside the proxy in the scope that the keys file says, and through it with the tenant's key."""
    rows_of = [numbers(next(seeds)) for _ in range(3)]
    columns = "\n".join(json.dumps({"x": row}) for row in rows_of)
    (tmp_path / "rows.jsonl").write_text(columns)
    key = tmp_path / "key"
    key.write_text(key_of("team1")["X-API-Key"])
    key.chmod(0o600)
    common = [str(tmp_path / "rows.jsonl"), "--model=fingerprint", f"--checkpoint={tmp_path / 'c'}", "--json"]

    def warm(*flags: str) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", "foreseen.cli", "warm", *common, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    keys = shared.data.parent / "keys.toml"
    before = rows(shared)
    warm("--tenant=b", f"--keys-file={keys}", f"--data={shared.data}")
    assert rows(shared) - before == 3
    warm(f"--url={shared.url}", f"--key-file={key}")
    assert rows(shared) - before == 6
    warm("--tenant=a", f"--keys-file={keys}", f"--data={shared.data}")  # with the same checkpoints
    assert rows(shared) - before == 9
    for tenant, more in (("b", 9), ("team2", 9), ("a", 9), ("pub1", 12)):
        for row in rows_of:
            assert shared.post(FINGERPRINT, ask_fingerprint(row), key_of(tenant))[0] == 200
        assert rows(shared) - before == more, tenant
    refused = subprocess.run(
        [sys.executable, "-P", "-m", "foreseen.cli", "warm", *common, f"--url={shared.url}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "--key-file" in refused.stderr
