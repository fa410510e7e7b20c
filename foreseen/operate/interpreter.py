"""How this Python was built → whether its bytecode runs as fast as it can.

A CPython that was built with its profile of itself (`--enable-optimizations`) takes 0.7 of the time over the same
bytecode. Distributions and Python's own images build it so; version managers do not unless they are told to. `make`
asks this file, with nothing installed yet, which of a machine's Pythons to take; `foreseen doctor` says which it was.
"""

import importlib.util
import sys
import sysconfig

OLDEST = 3, 11


def optimized(options: str | None = None, base: str = sys.base_prefix) -> bool:
    """Whether it was built with its profile: it says so, or it is the distribution's, which says nothing of it."""
    said = str(sysconfig.get_config_var("CONFIG_ARGS") or "") if options is None else options
    return "--enable-optimizations" in said or base == "/usr"


def fit() -> bool:
    """Whether it is new enough, can make environments, and is fast."""
    return sys.version_info >= OLDEST and importlib.util.find_spec("ensurepip") is not None and optimized()


if __name__ == "__main__":
    sys.exit(not fit())
