"""The servers of `bench.hit`: Foreseen, nginx with `proxy_cache`, and a bare aiohttp application over a dict."""

from __future__ import annotations

import contextlib
import getpass
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import shapes
from bench.interleaved import ROOT, listens, need, pinned
from tests.models_fixture import built_data
from tests.ports import free_port

MODELS = ("minilm", "fingerprint", *shapes.NAMES)
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


class Running(NamedTuple):
    """A server: its URL, and the process that it is, or that has it as a child."""

    url: str
    pid: int


@contextlib.contextmanager
def foreseen(folder: Path, name: str, *flags: str) -> Iterator[Running]:
    """A system on the server's core."""
    port = free_port()
    data = folder / name
    data.mkdir()
    (data / "models").mkdir()
    for built, names in ((built_data(), ("minilm", "fingerprint")), (shapes.made()[0], shapes.NAMES)):
        for model in names:
            (data / "models" / model).symlink_to(built / "models" / model)
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", "--log-level=error"]
    command += [f"--models={shapes.FOLDER}", *(f"--model={name}" for name in MODELS), *flags]
    url = f"http://127.0.0.1:{port}"

    def predicts() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1) as reply:
            return bool(reply.status == 200)
        return False

    with pinned(command, ready=predicts, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        yield Running(url, process.pid)


@contextlib.contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[Running]:
    port = free_port()
    (folder / "nginx").mkdir()
    conf = folder / "nginx" / "nginx.conf"
    conf.write_text(
        NGINX.format(user=getpass.getuser(), folder=folder / "nginx", port=port, upstream=upstream.rsplit(":", 1)[1])
    )
    with pinned(
        [need("nginx", "nginx-light"), "-c", str(conf)], ready=lambda: listens(port), stderr=subprocess.DEVNULL
    ) as process:
        yield Running(f"http://127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def dict_server(folder: Path, answer: bytes) -> Iterator[Running]:
    port = free_port()
    (folder / "answer").write_bytes(answer)
    command = [sys.executable, "-c", DICT_SERVER, str(port), str(folder / "answer")]
    with pinned(command, ready=lambda: listens(port)) as process:
        yield Running(f"http://127.0.0.1:{port}", process.pid)


def ask(url: str, body: bytes, length: int | None = None) -> bytes:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
        return bytes(reply.read())
