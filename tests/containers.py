"""A service of docker-compose.yml as a process in a mount namespace: its user, its read-only root, its mounts.

No Docker engine is needed, only root. The root is a tmpfs that holds this machine's top-level folders, the folders that
the image makes, and what the file mounts; then it is made read-only. Networks are this machine's: names of services
are replaced by addresses on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEFT_OUT = ("/data", "/manifests", "/tmp", "/run", "/media", "/mnt")
"""Top-level folders of this machine that a container does not see."""


@dataclass(frozen=True)
class Mounted:
    """A folder or file of this machine at a place in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass
class Container:
    process: subprocess.Popen[bytes]
    service: Mapping[str, Any]
    environment: Mapping[str, str]

    def exec(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A command in it, as `docker compose exec` runs one: the service's user, environment and file system."""
        uid, gid = self.service["user"].split(":")
        inside = ["nsenter", f"--target={_first_child(self.process.pid)}", "--mount", "--root"]
        command = [*inside, f"--setuid={uid}", f"--setgid={gid}", "env", "-C", "/data", *words]
        return subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, timeout=seconds, check=False
        )


def possible() -> bool:
    """Whether this user may make mount namespaces."""
    return os.getuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@contextlib.contextmanager
def container(
    root: Path, service: Mapping[str, Any], words: Sequence[str], mounts: Sequence[Mounted], log: Path
) -> Iterator[Container]:
    """Run a service's command. `root` is an empty folder of its own; output goes to `log`."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        **{name: str(value) for name, value in service.get("environment", {}).items()},
    }
    uid, gid = service["user"].split(":")
    script = [*_mounting(root, service, mounts)]
    script.append(
        f"exec /usr/sbin/chroot --userspec={uid}:{gid} --groups= {root} {shlex.join(['env', '-C', '/data', *words])}"
    )
    with log.open("wb") as out:
        command = ["unshare", "--mount", "--propagation=private", "sh", "-ec", "\n".join(script)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Container(process, service, environment)
    finally:
        process.terminate()
        process.wait(60)


def _mounting(root: Path, service: Mapping[str, Any], mounts: Sequence[Mounted]) -> Iterator[str]:
    """The shell's lines that make the file system under `root`."""
    yield f"mount -t tmpfs -o mode=755 tmpfs {root}"
    for folder in sorted(path for path in Path("/").iterdir() if path.is_dir() and str(path) not in LEFT_OUT):
        yield f"mkdir {root}{folder} && mount --rbind {folder} {root}{folder}"
    uid, gid = service["user"].split(":")
    yield f"install -d -o {uid} -g {gid} {root}/data {root}/data/models && install -d {root}/tmp {root}/run"
    for mount in mounts:
        place = f"{root}{mount.target}"
        make = f"mkdir -p {place}" if mount.source.is_dir() else f"mkdir -p {Path(place).parent} && touch {place}"
        yield f"{make} && mount --bind {mount.source} {place}"
        if mount.read_only:
            yield f"mount -o remount,bind,ro {place}"
    for one in service.get("tmpfs", []):
        target, _, options = one.partition(":")
        yield f"mkdir -p {root}{target} && mount -t tmpfs -o {options or 'mode=755'} tmpfs {root}{target}"
    yield f"mount -o remount,ro {root}"


def _first_child(pid: int) -> int:
    """`unshare` becomes the shell and the shell the command, so it is the process itself, unless it has forked."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children and "unshare" in Path(f"/proc/{pid}/comm").read_text() else pid
