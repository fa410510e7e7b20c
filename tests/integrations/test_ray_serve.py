"""deploy/ray/serve_app.py on a local Ray: an application that asks its model through Foreseen."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integrations.conftest import ROOT, Run
from tests.live import Live
from tests.questions import fingerprint, numbers

PROGRAM = """
import json, sys, urllib.request
sys.path.insert(0, {root!r})
from ray import serve
from deploy.ray.serve_app import app
serve.start(http_options={{"port": {port}}})
handle = serve.run(app)
body = json.dumps({{"inputs": {inputs!r}}}).encode()
answers = []
for _ in range(3):
    with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:{port}/", body), timeout=60) as reply:
        answers.append(json.loads(reply.read()))
answers.append(handle.predict.remote({inputs!r}).result())
print("ANSWERS " + json.dumps(answers))
serve.shutdown()
"""


def test_a_deployment_asks_through_the_cache(live: Live, tmp_path: Path, ray: Run) -> None:
    """The first request is computed; the others, by whichever replica, and by a handle, are hits."""
    from tests.ports import free_port

    row = numbers(31_000)
    inputs = [{"name": "x", "shape": [1, 16], "datatype": "INT64", "data": row}]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), port=free_port(), inputs=inputs))
    environment = {"FORESEEN_PROXY": live.url, "FORESEEN_PROXY_MODEL": "fingerprint"}
    environment |= dict.fromkeys(
        ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"), "90"
    )
    before = live.model_metric("fingerprint", "foreseen_model_rows_total")
    done = ray("python", program, **environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    answers = json.loads(line.removeprefix("ANSWERS "))
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") - before == 1
    assert "fwd=miss" in answers[0]["cache"]
    assert all(answer["cache"].startswith("foreseen;hit") for answer in answers[1:])
    for answer in answers:
        assert next(one["data"] for one in answer["outputs"] if one["name"] == "digest") == fingerprint(row)
