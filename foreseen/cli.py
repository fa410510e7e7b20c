"""The command `foreseen`: the only place that reads the environment and that ends the process with a status."""

from __future__ import annotations

import sys
from importlib.metadata import version

import cyclopts
from cyclopts import App

from foreseen.errors import SetupError
from foreseen.logs import configure
from foreseen.settings import InferenceSettings, ProxySettings, UpSettings

app = App(
    name="foreseen",
    help="A caching prediction proxy: ask once, the model answers; ask again, the cache does.",
    version=version("foreseen"),
    config=cyclopts.config.Env("FORESEEN_", command=False),
)
app.command("models.commands:app", name="models")

_UP, _PROXY = UpSettings(), ProxySettings()


@app.command
def up(settings: UpSettings = _UP) -> None:
    """Start everything on this machine: Valkey, one process per model and the proxy.

    Builds what is not built, prints "ready http://HOST:PORT" when a real prediction has gone through, supervises,
    and on Ctrl-C or SIGTERM stops all of it.
    """
    from foreseen.up import run

    configure(settings.log_level, "up")
    sys.exit(run(settings))


@app.command
def proxy(settings: ProxySettings = _PROXY) -> None:
    """Run one proxy process, in front of model processes that run already."""
    from proxy.app import run

    configure(settings.log_level, "proxy")
    run(settings)


@app.command
def inference(settings: InferenceSettings) -> None:
    """Run one model's own process: a V2 server over ONNX Runtime."""
    from inference.app import serve

    configure(settings.log_level, f"inference:{settings.model}")
    serve(settings)


def main() -> None:
    """Run a command. What is not as it must be is one line on stderr that says what to do, and status 1."""
    try:
        app()
    except SetupError as error:
        print(f"foreseen: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
