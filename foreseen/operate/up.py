"""`foreseen up`: Valkey, one process per model and the proxy workers on one machine, from start to stop.

Starts them in the order of their dependencies, prints `ready` after a real prediction, restarts processes that end,
replaces models that were rebuilt, and all workers on SIGHUP (`rollout.py`). On SIGINT or SIGTERM it stops everything,
proxies first, so that requests under way still reach a model. The only TCP port is `--port`; every other listener is a
unix socket under the data directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Coroutine, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import structlog

from foreseen.errors import SetupError
from foreseen.keys.secret import make_secret, read_secret
from foreseen.modelspec.manifest import Manifest, find
from foreseen.operate.child_processes import build_model, foreseen_command, job_worker_children, model_child
from foreseen.operate.defaults import defaults_in_force
from foreseen.operate.readiness import READY_SECONDS, Readiness
from foreseen.operate.rollout import Rollout
from foreseen.operate.started import url_at, write_started
from foreseen.operate.supervisor import STARTED_SECONDS, Child
from foreseen.paths import children_file, make_run_folder, redis_socket, state_socket
from foreseen.queue.signing import Signer, make_webhook_secret
from foreseen.settings import ProxySettings, UpSettings, arguments
from foreseen.stores import valkey
from foreseen.tasks import end
from foreseen.telemetry.child_states import ChildrenFile
from foreseen.telemetry.exposition import MULTIPROCESS_FOLDER, forget_worker, prepare_multiprocess
from foreseen.tenants.keyring import Keyring, make_internal_credential
from foreseen.web.drain import ORPHANED
from foreseen.web.listen import listen, listen_admin, reserve, warn_of_open_listener
from foreseen.web.tls import tls_files

log = structlog.get_logger()

STOP_SECONDS = 15.0
FOLLOW_SECONDS = 1.0
"""Between two checks of the children, and for models that were rebuilt."""


def run(settings: UpSettings) -> int:
    """Run until SIGINT or SIGTERM; the exit status. Raises SetupError where it cannot start."""
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.data / "lock").open("a+") as lock:
        _take(lock, settings.data)
        return asyncio.run(_System(settings).run())


class _System:
    """Everything that one `foreseen up` runs."""

    def __init__(self, settings: UpSettings) -> None:
        self._settings = settings
        self._models = [_manifest(name, settings) for name in settings.own_models]
        self._local = [manifest for manifest in self._models if manifest.upstream is None]
        leave_seconds = settings.drain_seconds + settings.deadline_seconds + STOP_SECONDS
        self._fleet = Rollout(settings.data, self._worker, partial(model_child, settings), leave_seconds)
        has_upstream = bool(settings.upstream) or len(self._local) < len(self._models)
        self._credential, credential = make_internal_credential()
        self._readiness = Readiness(self._local, self._fleet.of, credential, has_upstream=has_upstream)
        self._predicting = False
        self._stopping = asyncio.Event()
        self._hangup = asyncio.Event()
        self._admin: socket.socket | None = None
        self._states: ChildrenFile | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._worker_flags: list[str] = []
        self._worker_descriptors: tuple[int, ...] = ()
        self._worker_environment: dict[str, str] = {}

    async def run(self) -> int:
        settings = self._settings
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hangup.set)
        listener, later = listen(settings.host, settings.port), None
        reserved = _reserved(settings)
        url = url_at(settings.host, listener.getsockname()[1], secure=settings.tls_cert is not None)
        try:
            write_started(settings, listener.getsockname()[1])
            await self._unless_stopped(self._start(listener, url))
            if not self._stopping.is_set():
                if self._predicting:
                    print(f"ready {url}", flush=True)
                else:
                    later = asyncio.create_task(self._readiness.say_ready(url))
                await self._watch()
        finally:
            if later is not None:
                later.cancel()
            listener.close()
            if reserved is not None:
                reserved.close()
            if self._admin is not None:
                self._admin.close()
            await self._stop()
        return 0

    async def _start(self, listener: socket.socket, url: str) -> None:
        settings = self._settings
        make_run_folder(settings.data)
        warn_of_open_listener(settings)
        tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)  # raises SetupError now, as below
        if settings.keys_file is not None:
            Keyring(settings.keys_file)
        self._publishing = asyncio.create_task(self._publish_states(ChildrenFile(children_file(settings.data))))
        for manifest in self._local:
            await build_model(manifest, settings)
        print(defaults_in_force(settings, self._models, url), flush=True)
        if settings.admin_token_file is None:
            make_secret(settings.data / "admin-token")
        read_secret(settings.admin_token_file or settings.data / "admin-token")
        if settings.webhook_allow:
            if settings.webhook_secret_file is None:
                make_webhook_secret(settings.webhook_secret)
            Signer(settings.webhook_secret)  # raises SetupError now rather than in a worker
        secret = settings.secret_file or settings.data / "secret"
        if settings.redis is None:
            make_secret(secret)
        read_secret(secret)  # as above: now rather than in a worker
        if settings.redis is None:
            await self._start_valkey()
        state = await self._start_state() if settings.state is None else settings.state
        for manifest in self._local:
            await self._fleet.add_model(manifest)
        await self._start_workers(listener, state)
        for child in job_worker_children(settings, state):
            await self._fleet.add(child)
        self._predicting = await self._readiness.until_predicting(url)

    async def _start_valkey(self) -> None:
        path = redis_socket(self._settings.data)
        valkey.end_leftover(path)
        path.unlink(missing_ok=True)
        command, file = valkey.command(path, self._settings.far_bytes), path.with_suffix(".log")
        child = Child("far", command, log_file=file, healthy_seconds=STARTED_SECONDS)
        await self._add_store(child, path, "answers go on without it, from near and the models")

    async def _start_state(self) -> str:
        """Start the state store on its existing data; its address."""
        path, folder = state_socket(self._settings.data), self._settings.data.resolve() / "state"
        folder.mkdir(mode=0o700, exist_ok=True)
        valkey.end_leftover(path)
        path.unlink(missing_ok=True)
        command, file = valkey.state_command(path, folder), path.with_suffix(".log")
        child = Child("state", command, log_file=file, healthy_seconds=STARTED_SECONDS, oom_score=0)
        lost = "until it starts no job is taken, no purge is acknowledged, and answers go past the cache"
        await self._add_store(child, path, lost)
        return f"unix://{path}"

    async def _add_store(self, child: Child, path: Path, lost: str) -> None:
        """Start a store and wait until it answers. If it ends instead, the supervisor keeps restarting it, and the rest
        starts without it: predictions do not need it."""
        await self._fleet.add(child)
        try:
            await valkey.until_answering(path, READY_SECONDS, lambda: child.ends > 0)
        except SetupError as error:
            log.error("store not started; starting the rest", store=child.name, why=str(error), lost=lost)

    async def _start_workers(self, listener: socket.socket, state: str) -> None:
        settings = self._settings
        if settings.workers > 1:
            folder = make_run_folder(settings.data) / "metrics"
            prepare_multiprocess(folder)
            os.environ[MULTIPROCESS_FOLDER] = self._worker_environment[MULTIPROCESS_FOLDER] = str(folder)
        self._admin = admin = listen_admin(settings, take=True)
        self._worker_descriptors = (listener.fileno(), admin.fileno(), self._credential)
        own = ("--state=", "--redis=", "--admin-port=")
        flags = [flag for flag in arguments(settings, ProxySettings) if not flag.startswith(own)]
        self._worker_flags = [*flags, f"--fd={listener.fileno()}", f"--admin-fd={admin.fileno()}"]
        self._worker_flags.append(f"--internal-fd={self._credential}")
        # every user of the machine can read a command line, and a password in it
        self._worker_environment["FORESEEN_STATE"] = state
        if settings.redis is not None:
            self._worker_environment["FORESEEN_REDIS"] = settings.redis
        for _ in range(settings.workers):
            await self._fleet.add_worker()

    def _worker(self, slot: int, links: Mapping[str, Path]) -> Child:
        """A proxy process; `links` are the sockets of models that are not at their default paths."""
        flags = self._worker_flags
        if links:
            named = [f"{name}=unix:{links[name]}" if name in links else name for name in self._settings.own_models]
            flags = [flag for flag in flags if not flag.startswith("--model=")] + [f"--model={one}" for one in named]
        return Child(
            f"proxy:{slot}",
            [*foreseen_command(), "proxy", *flags, f"--slot={slot}"],
            death_signal=ORPHANED,
            environment=self._worker_environment,
            pass_fds=self._worker_descriptors,
            on_end=(lambda _: forget_worker(slot)) if self._settings.workers > 1 else lambda _: None,
        )

    async def _publish_states(self, file: ChildrenFile) -> None:
        """Write the states of the children for the proxies' metrics, until cancelled."""
        try:
            while True:
                with contextlib.suppress(OSError):
                    file.write(self._fleet.states())
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            file.close()

    async def _watch(self) -> None:
        """Reload on SIGHUP and when a model was built, until the end. A reload that fails is retried."""
        while not self._stopping.is_set():
            work = self._reload() if self._hangup.is_set() else self._fleet.follow(self._local)
            try:
                await self._unless_stopped(work)
            except Exception as error:  # noqa: BLE001 - whatever it is, what runs goes on
                log.error("models not checked; retrying", why=f"{type(error).__name__}: {error}")
            if not self._hangup.is_set():
                waits = [asyncio.ensure_future(event.wait()) for event in (self._stopping, self._hangup)]
                await asyncio.wait(waits, timeout=FOLLOW_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()

    async def _reload(self) -> None:
        """SIGHUP: read the manifests, build models where needed, then replace every worker."""
        self._hangup.clear()
        try:
            manifests = [_manifest(manifest.name, self._settings) for manifest in self._local]
            for manifest in manifests:
                await build_model(manifest, self._settings)
        except SetupError as error:
            log.error("reload failed; nothing changed", why=str(error))
            return
        self._local = manifests
        rolls = self._fleet.rolls
        if not await self._fleet.follow(manifests):
            return
        if self._fleet.rolls > rolls or await self._fleet.replace_workers():
            await self._fleet.restart("worker:")
            log.info("reloaded")

    async def _unless_stopped(self, starting: Coroutine[Any, Any, object]) -> None:
        work = asyncio.ensure_future(starting)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        except TimeoutError:
            raise SetupError(f"no prediction succeeded within {READY_SECONDS:g} seconds; see the log above") from None
        finally:
            stopping.cancel()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work

    async def _stop(self) -> None:
        """Stop proxy workers, then models, then Valkey: the reverse order of dependencies. SIGINT: finish requests
        under way, without waiting for clients on idle connections."""
        for kind in ("proxy:", "worker:", "model:", "far", "state"):
            await asyncio.gather(*(child.stop(STOP_SECONDS, signal.SIGINT) for child in self._fleet.of(kind)))
        self._fleet.tidy()
        if self._publishing is not None:
            await end(self._publishing)


def _take(lock: IO[str], data: Path) -> None:
    """Hold the data directory. A killed instance's lock is gone with it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise SetupError(f"{data} is in use by {holder}; stop it, or give another --data") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()}")
    lock.flush()


def _reserved(settings: UpSettings) -> socket.socket | None:
    """The port of gRPC, taken for the workers of this system. Raises SetupError where it or grpcio is not to be had."""
    if settings.grpc_port is None:
        return None
    if find_spec("grpc") is None:  # importing it here would start threads, and this process forks
        raise SetupError("--grpc-port needs the extra: pip install foreseen[grpc]")
    return reserve(settings.host, settings.grpc_port, "--grpc-port")


def _manifest(named: str, settings: UpSettings) -> Manifest:
    if "=" in named:
        raise SetupError(f"--model {named}: `up` starts the models itself; give addresses to `foreseen proxy`")
    return find(named, settings.model_folders)
