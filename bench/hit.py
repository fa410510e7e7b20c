"""A hit beside a web server's: `make bench-hit`.

One 1 KB JSON request repeated, against nginx `proxy_cache` keyed by `$request_body` and a bare aiohttp application that
answers from a dict; then what a hit costs when the body differs (fresh `id`), when it comes from Redis, for text, and
for a batch of 64 rows.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.rounds import ROOT, free_port, listens, need, pinned, report, take_turns, wrk
from tests.models_fixture import built_data
from tests.questions import ask_fingerprint, ask_minilm, numbers

NGINX = """
user {user};
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache keys_zone=hits:10m max_size=100m;
  keepalive_requests 100000000;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_cache hits; proxy_cache_methods POST; proxy_cache_key "$request_uri|$request_body";
      proxy_cache_valid 200 1h; proxy_ignore_headers Cache-Control Expires;
    }}
  }}
}}
"""

DICT_SERVER = """
import sys, uvloop, asyncio
from aiohttp import web
body = open(sys.argv[2], 'rb').read()
kept = {}
async def answer(request):
    asked = await request.read()
    return web.Response(body=kept.setdefault(asked, body), content_type='application/json')
async def main():
    app = web.Application(); app.router.add_post('/{path:.*}', answer)
    runner = web.AppRunner(app, access_log=None); await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', int(sys.argv[1])).start(); await asyncio.Event().wait()
uvloop.run(main())
"""


def script(folder: Path, name: str, body: str, *, fresh_id: bool = False) -> Path:
    """A wrk script that posts one body for ever, or with a fresh id each time."""
    path = folder / f"{name}.lua"
    lines = ['wrk.method = "POST"', 'wrk.headers["Content-Type"] = "application/json"', f"local body = [==[{body}]==]"]
    if fresh_id:
        lines += [
            "local n = 0",
            "request = function() n = n + 1",
            "  return wrk.format(nil, nil, nil, '{\"id\":\"' .. n .. '\",' .. body:sub(2)) end",
        ]
    else:
        lines.append("wrk.body = body")
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def foreseen(folder: Path, name: str, *flags: str) -> Iterator[str]:
    """A system on the server's core; its URL."""
    port = free_port()
    data = folder / name
    data.mkdir()
    (data / "models").symlink_to(built_data() / "models")
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", "--log-level=error"]
    command += ["--model=minilm", "--model=fingerprint", *flags]
    url = f"http://127.0.0.1:{port}"

    def predicts() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1) as reply:
            return bool(reply.status == 200)
        return False

    with pinned(command, ready=predicts, stdout=subprocess.DEVNULL, cwd=ROOT):
        yield url


@contextlib.contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[str]:
    port = free_port()
    (folder / "nginx").mkdir()
    conf = folder / "nginx" / "nginx.conf"
    conf.write_text(
        NGINX.format(user=getpass.getuser(), folder=folder / "nginx", port=port, upstream=upstream.rsplit(":", 1)[1])
    )
    with pinned(
        [need("nginx", "nginx-light"), "-c", str(conf)], ready=lambda: listens(port), stderr=subprocess.DEVNULL
    ):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def dict_server(folder: Path, answer: bytes) -> Iterator[str]:
    port = free_port()
    (folder / "answer").write_bytes(answer)
    command = [sys.executable, "-c", DICT_SERVER, str(port), str(folder / "answer")]
    with pinned(command, ready=lambda: listens(port)):
        yield f"http://127.0.0.1:{port}"


def ask(url: str, body: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=60) as reply:
        return bytes(reply.read())


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fsn") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        one = json.dumps(ask_fingerprint(*(numbers(n) for n in range(6))))  # 1 KB
        text = json.dumps(ask_minilm("A man is eating a piece of bread."))
        batch = json.dumps(ask_fingerprint(*(numbers(n) for n in range(64))))
        here = running.enter_context(foreseen(folder, "near"))
        far = running.enter_context(foreseen(folder, "far", "--near-bytes=0"))
        model = "/v2/models/fingerprint/infer"
        answer = ask(here + model, one)
        cached = running.enter_context(nginx(folder, here))
        plain = running.enter_context(dict_server(folder, answer))
        exact, fresh = script(folder, "exact", one), script(folder, "fresh", one, fresh_id=True)
        turns: dict[str, tuple[str, Path]] = {
            "nginx proxy_cache": (cached + model, exact),
            "aiohttp application, dict": (plain + model, exact),
            "near, same body": (here + model, exact),
            "near, fresh id": (here + model, fresh),
            "far, same body": (far + model, exact),
            "near, one text": (here + "/v2/models/minilm/infer", script(folder, "text", text)),
            "near, 64 rows": (here + model, script(folder, "batch", batch)),
        }
        for url, _ in turns.values():
            for body in (one, text, batch):
                with contextlib.suppress(OSError):
                    ask(url, body)

        def turn(url: str, path: Path) -> Callable[[], tuple[float, float, float]]:
            return lambda: wrk(url, path, connections=settings.connections, seconds=settings.seconds)

        figures = take_turns({what: turn(*where) for what, where in turns.items()}, settings.rounds)
        report("A repeated request", figures, "nginx proxy_cache", body_bytes=len(one))


if __name__ == "__main__":
    main()
