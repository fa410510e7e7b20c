"""The child processes of `foreseen up`: the command of each, and the build of a model that one of them serves."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from foreseen.errors import SetupError
from foreseen.logs import default_format
from foreseen.modelspec.artifact import preparation_digest, read_file, read_record
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.manifest.source import changed_file
from foreseen.operate.supervisor import STARTED_SECONDS, Child
from foreseen.settings import InferenceSettings, UpSettings, WorkerSettings, arguments
from foreseen.telemetry.exposition import MULTIPROCESS_FOLDER
from foreseen.web.drain import ORPHANED

log = structlog.get_logger()


def foreseen_command() -> list[str]:
    """The command of a child. -P: Python would import a folder or file of the current directory before our own."""
    return [sys.executable, "-P", "-m", "foreseen.cli"]


def model_child(settings: UpSettings, manifest: Manifest, path: Path) -> Child:
    """The process of one model, on a unix socket."""
    own = ("--model=", "--host=", "--port=")  # the proxy's, under the same names
    flags = [flag for flag in arguments(settings, InferenceSettings) if not flag.startswith(own)]
    command = [*foreseen_command(), "inference", f"--model={manifest.name}", f"--uds={path}", *flags]
    return Child(f"model:{manifest.name}", command, death_signal=ORPHANED)


def job_worker_children(settings: UpSettings, state: str) -> Iterator[Child]:
    """Workers on the queue of jobs, where there is one."""
    if state == "none":
        return
    listeners = ("--admin-port=", "--grpc-port=", "--port=", "--host=")
    own = ("--state=", "--redis=", "--near-bytes=", "--reply-cache-bytes=", *listeners)
    flags = [flag for flag in arguments(settings, WorkerSettings) if not flag.startswith(own)]
    # The proxies' files of metrics are theirs alone: two processes that write one file leave it unreadable.
    environment: dict[str, str | None] = {"FORESEEN_STATE": state, MULTIPROCESS_FOLDER: None}
    if settings.redis is not None:
        environment["FORESEEN_REDIS"] = settings.redis
    for number in range(settings.job_workers):
        command = [*foreseen_command(), "worker", *flags]
        if settings.job_metrics_port is not None:
            command.append(f"--metrics-port={settings.job_metrics_port + number}")
        child = Child(
            f"worker:{number}",
            command,
            death_signal=signal.SIGTERM,
            environment=environment,
            healthy_seconds=STARTED_SECONDS,
        )
        yield child


async def build_model(manifest: Manifest, settings: UpSettings) -> None:
    """Build a model in a process of its own where it is missing or of an older manifest."""
    if changed := await asyncio.to_thread(changed_file, manifest.source, manifest.name):
        log.warning("model file changed; the previous build is served", model=manifest.name, why=changed)
    if _is_built(manifest, settings.data):
        return
    flags = ["--models", str(settings.models)] if settings.models else []
    flags.append(f"--log-format={settings.log_format or default_format()}")
    process = await asyncio.create_subprocess_exec(
        *foreseen_command(),
        "models",
        "build",
        manifest.name,
        "--data",
        str(settings.data),
        *flags,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        if await process.wait():
            raise SetupError(f"model {manifest.name!r} could not be built; see its error above")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _is_built(manifest: Manifest, data: Path) -> bool:
    try:
        artifact = read_record(data, manifest.name).artifact
        for file in (artifact.graph, *artifact.assets):
            read_file(data, artifact, file)
    except SetupError:
        return False
    return artifact.preparation == preparation_digest(manifest, artifact.assets)
