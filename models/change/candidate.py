"""A model process beside those of `foreseen up`, for as long as a comparison or a handover takes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from foreseen.errors import SetupError
from foreseen.models.change.artifacts import NamedArtifact
from foreseen.operate.child_processes import foreseen_command
from foreseen.operate.started import settings_at
from foreseen.operate.supervisor import PR_SET_PDEATHSIG
from foreseen.paths import make_run_folder, model_socket
from foreseen.settings import InferenceSettings, arguments
from foreseen.warm.sched_idle import only_when_idle

READY_SECONDS = 120.0
LEAVE_SECONDS = 10.0
STDERR = 2
"""Its log goes where this process's errors go."""
_OWN = frozenset(("--model", "--host", "--port", "--data"))
_SOCKET = re.compile(r".*\.candidate-([0-9]+)-[0-9]+\.sock")
_numbers = iter(range(1_000_000))


@contextlib.contextmanager
def candidate(chosen: NamedArtifact, data: Path, models: Path | None, *, idle: bool = False) -> Iterator[str]:
    """The address of a process that serves this artifact as `foreseen up` would; it ends with this process, however
    this one ends. `idle`: it runs only on idle cores, once it is ready. Raises SetupError where it does not become
    ready."""
    make_run_folder(data)
    _remove_left(data)
    socket = model_socket(data, f"{chosen.manifest.name}.candidate-{os.getpid()}-{next(_numbers)}")
    flags = _flags(data)
    if models is not None:
        flags = [flag for flag in flags if not flag.startswith("--models=")] + [f"--models={models}"]
    flags += [f"--data={data}", f"--model={chosen.manifest.name}", f"--artifact={chosen.record.artifact.digest}"]
    reader, writer = os.pipe()
    try:
        process = _started([*flags, f"--uds={socket}", f"--ready-fd={writer}", "--log-level=error"], writer)
    finally:
        os.close(writer)
    try:
        _until_ready(reader, chosen)
        if idle:
            only_when_idle(process.pid)
        yield f"unix:{socket}"
    finally:
        os.close(reader)
        _end(process)
        socket.unlink(missing_ok=True)


def _started(flags: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent() -> None:
        """In the child: a killed command leaves nothing running (Linux)."""
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:  # it died in between
                os._exit(1)

    return subprocess.Popen(  # noqa: S603 - our own command
        [*foreseen_command(), "inference", *flags],
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        pass_fds=(descriptor,),
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - this process starts it before any thread
    )


def _until_ready(reader: int, chosen: NamedArtifact) -> None:
    readable, _, _ = select.select([reader], [], [], READY_SECONDS)
    if not readable or not os.read(reader, 1):  # the pipe ends with the process
        raise SetupError(f"{chosen.label} did not become ready; nothing has changed; see its error above")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # at once: SIGTERM would wait for idle connections
    try:
        process.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _flags(data: Path) -> list[str]:
    """How `foreseen up` would start a model process there: its digest contains provider and session options."""
    settings = settings_at(data, InferenceSettings, model="any")
    return [flag for flag in arguments(settings, InferenceSettings) if flag.partition("=")[0] not in _OWN]


def _remove_left(data: Path) -> None:
    """Remove sockets of killed commands."""
    for path in model_socket(data, "any").parent.glob("*.candidate-*.sock"):
        found = _SOCKET.fullmatch(path.name)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            path.unlink(missing_ok=True)
