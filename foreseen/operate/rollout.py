"""Rolling restarts: replaces the processes of models and workers without losing a request.

The new process is ready before the old one gets SIGTERM, and the old one drains (`drain.py`). Workers share one
inherited listening socket, which never closes. A model's process listens on a socket of its own; workers connect to a
symbolic link, which is switched to the new socket. Where the preparation of inputs has changed too (manifest,
tokenizer), new workers get a link of their own, and old workers use the old process until they end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.modelspec.artifact import read_record
from foreseen.modelspec.manifest import Manifest
from foreseen.operate.supervisor import Child
from foreseen.paths import model_socket
from foreseen.telemetry.child_states import ChildState

log = structlog.get_logger()

READY_SECONDS = 120.0
"""How long a new process may take until it is ready; then the old one stays."""


class SupervisedModel(Struct):
    """A model's process, its manifest, its socket, and the link that workers connect to."""

    child: Child
    artifact: str
    preparation: str
    socket: Path
    link: Path


class Rollout:
    """What runs. `worker` makes a process for a slot and the links of models that have moved, `model` one for a
    manifest and a socket; neither starts it. `leave_seconds`: how long a process may take to end."""

    def __init__(
        self,
        data: Path,
        worker: Callable[[int, Mapping[str, Path]], Child],
        model: Callable[[Manifest, Path], Child],
        leave_seconds: float,
    ) -> None:
        self.children: list[Child] = []
        self.rolls = 0
        """How often all workers were replaced."""
        self._data = data
        self._worker = worker
        self._model = model
        self._leave_seconds = leave_seconds
        self._models: dict[str, SupervisedModel] = {}
        self._numbers = itertools.count(1)
        self._refused: dict[str, str] = {}

    def states(self) -> list[ChildState]:
        """The processes, running or not. Of a process and its successor the newer counts."""
        known = {child.name: ChildState(child.name, child.is_running, child.all_ends) for child in self.children}
        return list(known.values())

    def of(self, *kinds: str) -> list[Child]:
        return [child for child in self.children if child.name.startswith(kinds)]

    async def add(self, child: Child) -> None:
        self.children.append(child)
        await child.start()

    async def add_model(self, manifest: Manifest) -> None:
        made = self._models[manifest.name] = self._made(manifest)
        _turn_over(made.link, made.socket)
        await self.add(made.child)

    async def add_worker(self) -> None:
        await self.add(self._next_worker())

    def tidy(self) -> None:
        """Remove links and sockets at the end: connecting to a dead socket looks like a model that hangs."""
        for name, one in self._models.items():
            for path in (model_socket(self._data, name), one.link, one.socket):
                path.unlink(missing_ok=True)

    async def follow(self, manifests: Iterable[Manifest]) -> bool:
        """Replace the process of every model whose artifact in force has changed. False where an old process stays,
        because its successor, or a worker's, did not become ready."""
        for manifest in manifests:
            name = manifest.name
            try:
                artifact = read_record(self._data, name).artifact.digest
            except SetupError as error:
                log.error("model not checked for a rebuild", model=name, why=str(error))
                continue
            if artifact not in (self._models[name].artifact, self._refused.get(name)):
                log.info("model rebuilt", model=name, artifact=artifact[:12])
                if not await self._renew(manifest):
                    self._refused[name] = artifact
                    return False
        return True

    async def replace_workers(self) -> bool:
        """Replace the workers one by one. False where a new one did not become ready: that one and the rest stay."""
        for old in self.of("proxy:"):
            new = self._next_worker()
            if not await self._ready(new):
                return False
            await self._retire(old, new)
        self.rolls += 1
        return True

    async def restart(self, *kinds: str) -> None:
        """Replace processes that serve no requests: the old one ends before the new one starts."""
        for old in self.of(*kinds):
            await old.stop(self._leave_seconds)
            self.children.remove(old)
            new = old.like()
            self.children.append(new)
            try:
                await new.start()
            except OSError as error:
                log.error("not started; retrying", child=new.name, why=error.strerror)
                new.keep()

    async def _renew(self, manifest: Manifest) -> bool:
        """Whether a model's new process has taken the old one's place."""
        name = manifest.name
        old, new = self._models[name], self._made(manifest)
        if not await self._ready(new.child):
            return False
        moved = new.preparation != old.preparation
        new.link = new.socket.with_suffix(".link") if moved else old.link
        self._models[name] = new
        _turn_over(new.link, new.socket)
        if moved and not await self.replace_workers():
            return False  # those that were replaced need the new process, the others the old one
        _turn_over(model_socket(self._data, name), new.socket)
        await self._retire(old.child, new.child)
        old.socket.unlink(missing_ok=True)
        if moved:
            await self.restart("worker:")
        return True

    async def _ready(self, new: Child) -> bool:
        """Start a process and wait until it is ready; end it where it is not in time."""
        self.children.append(new)
        try:
            await new.start(announced=True)
            if await new.until_ready(READY_SECONDS):
                return True
            log.error("new process not ready; the old one stays", child=new.name)
        except OSError as error:
            log.error("new process not started; the old one stays", child=new.name, why=error.strerror)
        self.children.remove(new)
        await new.stop(self._leave_seconds)
        return False

    async def _retire(self, old: Child, new: Child) -> None:
        await old.stop(self._leave_seconds)
        self.children.remove(old)
        log.info("replaced", child=old.name, by=new.name)

    def _made(self, manifest: Manifest) -> SupervisedModel:
        name, artifact = manifest.name, read_record(self._data, manifest.name).artifact
        socket = model_socket(self._data, f"{name}.{next(self._numbers)}")
        socket.unlink(missing_ok=True)
        child, link = self._model(manifest, socket), model_socket(self._data, name)
        return SupervisedModel(child, artifact.digest, artifact.preparation, socket, link)

    def _next_worker(self) -> Child:
        """Start a worker in the lowest free slot: the counters of a slot continue across its processes."""
        taken = {child.name for child in self.of("proxy:")}
        slot = next(number for number in itertools.count() if f"proxy:{number}" not in taken)
        usual = {name: model_socket(self._data, name) for name in self._models}
        return self._worker(slot, {name: one.link for name, one in self._models.items() if one.link != usual[name]})


def _turn_over(link: Path, socket: Path) -> None:
    """Switch the link to this socket, atomically: every connection reaches the old or the new one."""
    beside = link.with_suffix(".turn")
    beside.unlink(missing_ok=True)
    beside.symlink_to(socket.name)
    beside.replace(link)
