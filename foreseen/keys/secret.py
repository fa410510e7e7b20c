"""Reads and makes the file of the root secret, from which all keys and tags derive."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from foreseen.errors import SetupError
from foreseen.keys.key import MIN_SECRET_BYTES


def read_secret(path: Path, what: str = "root secret", least: int = MIN_SECRET_BYTES) -> bytes:
    """The secret. Raises SetupError where it is missing, too short or readable by others. `what` it is called there."""
    try:
        content = path.read_bytes().strip()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise SetupError(f"{path}: there is no {what}; make one: head -c 32 /dev/urandom | base64 > {path}") from None
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    if len(content) < least:
        raise SetupError(f"{path}: the {what} is shorter than {least} characters; make a longer one")
    if mode & 0o007:
        raise SetupError(f"{path}: the {what} is readable by every user; chmod 600 {path}")
    return content


def make_secret(path: Path, text: str | None = None) -> None:
    """Make a secret where there is none: 256 bits, or this text; mode 0600, never seen half-written."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write((text or secrets.token_hex(32)) + "\n")
    try:
        os.link(beside, path)  # unlike a rename, this does not replace what another process made meanwhile
    except FileExistsError:
        pass
    finally:
        beside.unlink()
