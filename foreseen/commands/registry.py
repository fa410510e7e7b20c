"""All commands of `foreseen`. To add one: a function in a module of this room, its line here, its settings' class in
`foreseen/settings` with a line in `settings/commands.py`; then `make docs`.

A command imports what it runs inside its function, so that `foreseen key` loads neither aiohttp nor ONNX Runtime.
"""

from __future__ import annotations

from cyclopts import App

from foreseen.commands.app import app
from foreseen.commands.cache import audit, canary, explain, key, observed, purge, shadow, warm
from foreseen.commands.config import show
from foreseen.commands.keys import keys_app
from foreseen.commands.operators import dashboards, doctor, jobs, top, usage
from foreseen.commands.servers import inference, kafka, proxy, up, worker

__all__ = ["COMMANDS", "GROUPS", "app"]

GROUPS = {"models": "foreseen.models.commands:app"}
"""Commands with commands of their own, imported when they are asked for."""
COMMANDS = (
    up, proxy, worker, kafka, jobs, inference, key, purge, explain, observed, audit, shadow, canary, warm, doctor, top,
    usage, dashboards,
)  # fmt: skip
"""In the order of docs/cli.md."""

for _name, _place in GROUPS.items():
    app.command(_place, name=_name)
_config = App(name="config", help="Look at settings.", config=())
_config.command(show)
app.command(_config)
app.command(keys_app)
for _command in COMMANDS:
    app.command(_command)
