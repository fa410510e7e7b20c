"""Manifests in folders: `models/<name>/model.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from foreseen.errors import SetupError
from foreseen.modelspec.manifest.checks import NAME_SAFE, manifest_problem
from foreseen.modelspec.manifest.manifest import Manifest
from foreseen.modelspec.manifest.source import placed


def load(path: Path) -> Manifest:
    """Read one manifest. Raises SetupError with the file, the field and what is wrong."""
    try:
        manifest = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Manifest)
    except FileNotFoundError:
        raise SetupError(f"{path}: there is no such model manifest") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SetupError(f"{path}: {error}") from None
    if manifest.client is not None:
        manifest = msgspec.structs.replace(manifest, client=manifest.seen)  # with its outputs
    found = manifest_problem(manifest)
    if found is not None:
        raise SetupError(f"{path}: {found}")
    source = placed(manifest.source, path.parent.absolute())
    return msgspec.structs.replace(manifest, client=manifest.seen, source=source)  # both are read often


def find(name: str, folders: tuple[Path, ...]) -> Manifest:
    """The manifest called `name`, from the first of the folders that has one."""
    if not is_name(name):
        raise SetupError(f"model name {name!r}: letters, digits, '.', '_' and '-' only")
    for folder in folders:
        path = folder / name / "model.toml"
        if path.is_file():
            manifest = load(path)
            if manifest.name != name:
                raise SetupError(f"{path}: name is {manifest.name!r}, the folder says {name!r}")
            return manifest
    known = ", ".join(names(folders)) or "none"
    raise SetupError(f"no model called {name!r}; known models: {known}; give --models for another folder")


def is_name(name: str) -> bool:
    """Whether a model may be called so: its name stands in paths."""
    return bool(name) and set(name) <= NAME_SAFE and not name.startswith(".")


def names(folders: tuple[Path, ...]) -> list[str]:
    """The models that the folders hold a manifest of."""
    return sorted({path.parent.name for folder in folders for path in folder.glob("*/model.toml")})
