"""Whether this CPython was built with PGO (`--enable-optimizations`).

With PGO the same bytecode takes 0.7 of the time. Distributions and Python's own images build with it; version managers
do not by default. `make` runs this file before anything is installed to choose one of a machine's Pythons; `foreseen
doctor` reports the choice.
"""

import importlib.util
import sys
import sysconfig

OLDEST = 3, 11


def optimized(options: str | None = None, base: str = sys.base_prefix) -> bool:
    """Whether it was built with PGO: by its build flags, or because it is the distribution's, which hides them."""
    said = str(sysconfig.get_config_var("CONFIG_ARGS") or "") if options is None else options
    return "--enable-optimizations" in said or base == "/usr"


def fit() -> bool:
    """Whether it is new enough, can make environments, and is fast."""
    return sys.version_info >= OLDEST and importlib.util.find_spec("ensurepip") is not None and optimized()


if __name__ == "__main__":
    sys.exit(not fit())
