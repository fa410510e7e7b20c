"""Lua scripts that run inside Redis, read from the `.lua` files of a package."""

from __future__ import annotations

from importlib.resources import files


def lua_script(package: str, name: str) -> str:
    """The script `scripts/NAME.lua` of a package, without its comment lines: Redis gets the whole text with a call."""
    text = files(package).joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("--"))
