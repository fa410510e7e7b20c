"""Puts another artifact in force where `foreseen up` runs, and waits until its process has taken over.

The record is renamed into place, so a kill at any point leaves the old or the new artifact in force. The supervisor
starts the new process beside the old one and switches the socket (`operate/rollout.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.change.side import digest_at
from foreseen.modelspec.artifact import (
    Record,
    keep_record,
    kept_record,
    model_folder,
    read_record,
    read_serving,
    write_record,
)
from foreseen.paths import model_socket

SWITCH_SECONDS = 150.0
"""The supervisor looks once a second, and gives a new process two minutes."""
POLL_SECONDS = 0.2
HANDOVER_NAME = "handover.json"


class LastHandover(Struct, frozen=True):
    """The last change of the artifact in force by a handover: what `--rollback` takes back."""

    old: str
    """Artifact digest, hex."""
    new: str
    """Artifact digest, hex."""


@contextlib.contextmanager
def one_at_a_time(data: Path, name: str) -> Iterator[None]:
    """Hold a model's handover. A killed command's lock is gone with it. Raises SetupError."""
    path = model_folder(data, name) / ".handover.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"another handover of {name!r} is in progress under {data}") from None
        yield


def require_supervisor(data: Path) -> None:
    """Raises SetupError where no `foreseen up` runs: then nothing would follow the record."""
    try:
        with (data / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError:
        pass
    raise SetupError(
        f"no `foreseen up` runs with --data {data}, so no process would be replaced; start it, or change the model "
        "of a stopped system with `models build`"
    )


def switch(data: Path, name: str, new: Record) -> None:
    """Put an artifact in force, and wait until its process answers. Raises SetupError where it did not take over, and
    then the old artifact is in force again."""
    old = read_record(data, name)
    keep_record(data, old)  # older versions kept none
    _note(data, name, LastHandover(old.artifact.digest, new.artifact.digest))
    write_record(data, new)
    deadline = time.monotonic() + SWITCH_SECONDS
    while time.monotonic() < deadline:
        if _answers(data, name, new):
            return
        time.sleep(POLL_SECONDS)
    write_record(data, old)
    raise SetupError(
        f"the process of {new.artifact.digest[:12]} did not take over within {SWITCH_SECONDS:g} s; "
        f"{old.artifact.digest[:12]} is in force again; see the log of `foreseen up`"
    )


def _answers(data: Path, name: str, record: Record) -> bool:
    """Whether the process at the model's socket serves this artifact: each process records what it serves once it is
    ready."""
    serving = read_serving(data, name)
    if serving is None or serving.artifact != record.artifact.digest:
        return False
    try:
        return digest_at(f"unix:{model_socket(data, name)}", name) == serving.digest
    except SetupError:  # the supervisor restarts it, or switches at this moment
        return False


def former(data: Path, name: str) -> Record:
    """The artifact that was in force before the last handover. Raises SetupError if it was rolled back already, or
    another change followed it."""
    try:
        last = msgspec.json.decode((model_folder(data, name) / HANDOVER_NAME).read_bytes(), type=LastHandover)
    except (OSError, msgspec.DecodeError):
        raise SetupError(f"model {name!r} has had no handover under {data}: there is nothing to roll back") from None
    current = read_record(data, name).artifact.digest
    if current != last.new:
        raise SetupError(
            f"model {name!r}: in force is {current[:12]}, not {last.new[:12]} of the last handover: there is nothing "
            "to roll back"
        )
    return kept_record(data, name, last.old)


def _note(data: Path, name: str, last: LastHandover) -> None:
    """Written beside and renamed; before the record, so that it is true whenever the record is the new one."""
    path = model_folder(data, name) / HANDOVER_NAME
    beside = path.with_name(f".{HANDOVER_NAME}")
    beside.write_bytes(msgspec.json.encode(last))
    beside.replace(path)
