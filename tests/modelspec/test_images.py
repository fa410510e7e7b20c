"""What each image installs is what its process imports: the proxy no ML runtime, the model process no Redis client."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
FIRST_PARTY = ("foreseen",)
BUILDER, CHANGE = (
    sorted(
        ".".join(("foreseen", *p.relative_to(ROOT).with_suffix("").parts))
        for p in (ROOT / "models").rglob("*.py")
        if (p.parent.name == "change") is change
    )
    for change in (False, True)
)
"""What builds models, and what compares and changes running ones, which reads batch files and asks Redis."""
COMMANDS = ("foreseen.cli", "foreseen.commands.", "foreseen.models.change_commands")

IMAGES = {
    "proxy": (("foreseen.cli", "foreseen.proxy.app"), ("proxy", "grpc", "otel")),
    "inference on a CPU": (("foreseen.cli", "foreseen.inference.app"), ("cpu", "otel")),
    "models": (("foreseen.cli", *BUILDER), ("cpu", "build")),
    "up": (("foreseen.cli", *CHANGE), ("up", "otel")),
}
"""Image → the modules that its commands start from and the extras that it installs."""
FORBIDDEN = {
    "foreseen.proxy.app": ("onnxruntime", "onnx", "safetensors", "sklearn", "matplotlib", "foreseen.inference"),
    "foreseen.inference.app": (
        "redis",
        "hiredis",
        "tokenizers",
        "PIL",
        "onnx",
        "sklearn",
        "matplotlib",
        "foreseen.proxy",
    ),
}


@pytest.mark.parametrize("module", FORBIDDEN)
@pytest.mark.processes
def test_process_starts_without_the_others_libraries(module: str) -> None:
    """The process's application imports, and its command shows its help, where those libraries cannot be imported."""
    program = f"""
import sys
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if any((name + ".").startswith(one + ".") for one in {FORBIDDEN[module]!r}):
            raise ModuleNotFoundError(f"{{name}} is not in this image", name=name)
sys.meta_path.insert(0, Nobody())
import {module}
from foreseen.cli import app
app([{module.split(".")[1]!r}, "--help"], result_action="return_value")
there = sorted(set({FORBIDDEN[module]!r}) & set(sys.modules))
assert not there, there
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_image_installs_what_its_process_imports(image: str) -> None:
    """Every library that is imported anywhere on the way, inside functions too, comes with the image's extras."""
    roots, extras = IMAGES[image]
    providers = packages_distributions()
    comes = installed(listed(extras))
    missing = {
        library
        for library in imported_libraries(roots)
        if not {canonicalize_name(name) for name in providers.get(library, [library])} & comes
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("image", "unwanted"),
    [("proxy", {"onnxruntime", "onnxruntime-gpu", "onnx"}), ("inference on a CPU", {"redis", "hiredis", "tokenizers"})],
)
def test_image_installs_nothing_of_the_other_side(image: str, unwanted: set[str]) -> None:
    """Not through a dependency of a dependency either."""
    assert not installed(listed(IMAGES[image][1])) & unwanted


def test_images_need_what_they_install() -> None:
    """The other way round: the extras' own libraries are really imported, so none is there for nothing."""
    assert {"redis", "tokenizers", "PIL"} <= imported_libraries(IMAGES["proxy"][0])
    assert "onnxruntime" in imported_libraries(IMAGES["inference on a CPU"][0])
    assert {"onnx", "onnxruntime", "tokenizers", "safetensors"} <= imported_libraries(IMAGES["models"][0])


def test_gpu_extra_is_the_cpu_extra_on_another_runtime() -> None:
    """The GPU image carries what the CPU image does, but for the runtime, of which it never has both."""
    common = set(listed(()))
    (cpu,), (gpu,) = set(listed(("cpu",))) - common, set(listed(("gpu",))) - common
    assert (Requirement(cpu).name, Requirement(gpu).name) == ("onnxruntime", "onnxruntime-gpu")
    assert Requirement(cpu).specifier == Requirement(gpu).specifier


def imported_libraries(roots: tuple[str, ...]) -> set[str]:
    """Top-level names of all modules that are not ours and not Python's, reached from these modules by imports.

    Of the command line only what its modules import at their top: a command imports what it runs when it runs.
    """
    seen: set[str] = set()
    libraries: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imports_of(module):
            top = name.partition(".")[0]
            if top in FIRST_PARTY:
                waiting.append(name)
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
    return libraries


def imports_of(module: str) -> set[str]:
    """Names of modules that a module of ours imports."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return set()  # a name out of a module: `from foreseen.nouns import Row` asks for both, this is the second
    tree = ast.parse(file.read_text("utf-8"))
    names: set[str] = set()
    for node in tree.body if module.startswith(COMMANDS) else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{file}: a relative import"
            names.add(node.module)
            if node.module.partition(".")[0] in FIRST_PARTY:
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def listed(extras: tuple[str, ...]) -> list[str]:
    """What pyproject.toml lists for these extras, the common requirements included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]


def installed(texts: list[str]) -> set[str]:
    """Names of the distributions that pip would install for these requirements, as far as they are known here."""
    names: set[str] = set()
    seen: set[str] = set()
    waiting = list(texts)
    while waiting:
        text = waiting.pop()
        if text in seen:
            continue
        seen.add(text)
        asked = Requirement(text)
        names.add(canonicalize_name(asked.name))
        try:
            further = requires(asked.name) or []
        except PackageNotFoundError:
            continue
        for one in further:
            marker = Requirement(one).marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in asked.extras or {""}):
                waiting.append(one.partition(";")[0])
    return names
