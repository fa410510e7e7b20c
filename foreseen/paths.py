"""Paths under a data directory, by which every command finds what `foreseen up` started."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""The manifests of the models in the box."""
MAX_SOCKET_PATH = 100
"""Linux takes 107 bytes; Valkey's temporary names and ours need a few."""


def run_folder(data: Path) -> Path:
    """The folder of sockets: DATA/run, or a private one in the temporary folder where that path is too long."""
    folder = data.resolve() / "run"
    if len(os.fsencode(folder)) + 40 <= MAX_SOCKET_PATH:
        return folder
    name = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"foreseen-{os.getuid()}-{name}"


def make_run_folder(data: Path) -> Path:
    """Make it, for this user only. Raises OSError, also where another user owns it."""
    folder = run_folder(data)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    folder.chmod(0o700)
    return folder


def model_socket(data: Path, model: str) -> Path:
    return run_folder(data) / f"{model}.sock"


def state_socket(data: Path) -> Path:
    return run_folder(data) / "state.sock"


def admin_socket(data: Path) -> Path:
    return run_folder(data) / "admin.sock"


def children_file(data: Path) -> Path:
    """The file with the states of the supervisor's children."""
    return run_folder(data) / "children.json"


def redis_socket(data: Path) -> Path:
    return run_folder(data) / "far.sock"
