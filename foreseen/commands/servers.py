"""Commands that run servers: the whole system, or one process of it."""

from __future__ import annotations

import os
import sys

from foreseen.logs import configure
from foreseen.settings import InferenceSettings, KafkaSettings, ProxySettings, UpSettings, WorkerSettings
from foreseen.settings.commands import settings_of

_UP, _PROXY, _WORKER, _KAFKA = UpSettings(), ProxySettings(), WorkerSettings(), KafkaSettings()
OF_JOB_WORKERS = frozenset(("host",))
"""Only the environment of `up` sets where job workers serve /metrics: the flag of that name is for the proxies."""


def up(settings: UpSettings = _UP) -> None:
    """Start everything on this machine: Valkey, one process per model and the proxy.

    Builds missing models, prints "ready http://HOST:PORT" after a real prediction, restarts processes that end, and
    stops everything on Ctrl-C or SIGTERM.
    """
    from foreseen.operate.up import run
    from foreseen.proxy.backend.passed import check_passed

    configure(settings.log_level, "up", settings.log_format)
    check_passed(settings)
    for name in settings_of("up") - OF_JOB_WORKERS:  # children get their settings as flags only
        os.environ.pop(f"FORESEEN_{name.upper()}", None)
    sys.exit(run(settings))


def proxy(settings: ProxySettings = _PROXY) -> None:
    """Run one proxy process, in front of running model processes."""
    from foreseen.proxy.app import run

    configure(settings.log_level, "proxy", settings.log_format)
    run(settings)


def worker(settings: WorkerSettings = _WORKER) -> None:
    """Run one worker for queued jobs, in front of running model processes."""
    from foreseen.proxy.worker_app import run

    configure(settings.log_level, "worker", settings.log_format)
    run(settings)


def kafka(settings: KafkaSettings = _KAFKA) -> None:
    """Answer the messages of a Kafka topic, in front of running model processes (extra `kafka`)."""
    from foreseen.proxy.kafka_app import run

    configure(settings.log_level, "kafka", settings.log_format)
    run(settings)


def inference(settings: InferenceSettings) -> None:
    """Run one model's own process: a V2 server over ONNX Runtime."""
    from foreseen.inference.app import serve

    configure(settings.log_level, f"inference:{settings.model}", settings.log_format)
    serve(settings)
