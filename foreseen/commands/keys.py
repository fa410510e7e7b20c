"""Commands for keys of tenants and operators, in a keys file."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

keys_app = App(name="keys", help="Add, list and revoke keys of tenants.")
_FILE = "keys.toml"
Tenant = Annotated[str, Parameter(env_var=())]


@keys_app.command
def add(tenant: Tenant, /, *, keys_file: Path | None = None, data: Path = Path("data")) -> None:
    """Make a key for a tenant and print it, once; the file gets its hash.

    Parameters
    ----------
    tenant
        The tenant; made where the file does not have it.
    keys_file
        The keys file. Default: DATA/keys.toml.
    data
        The data directory.
    """
    from foreseen.tenants.edit_keys import add_key

    path = keys_file or data / _FILE
    print(add_key(path, tenant))
    print(f"{path}: holds its hash; proxies with --keys-file={path} take it within a second", file=sys.stderr)


@keys_app.command
def revoke(
    tenant: Tenant, /, *, digits: str | None = None, keys_file: Path | None = None, data: Path = Path("data")
) -> None:
    """Take all keys of a tenant out of the file, or one; proxies refuse them within two seconds.

    Parameters
    ----------
    tenant
        The tenant, which stays in the file.
    digits
        The first digits of one key's hash, as `foreseen keys list` shows them.
    keys_file
        The keys file. Default: DATA/keys.toml.
    data
        The data directory.
    """
    from foreseen.tenants.edit_keys import revoke_keys

    print(f"revoked {revoke_keys(keys_file or data / _FILE, tenant, digits)} of {tenant}")


@keys_app.command(name="list")
def list_(*, keys_file: Path | None = None, data: Path = Path("data"), json: bool = False) -> None:
    """Show the tenants of a keys file: scope, models, expiry, and the first digits of each key's hash.

    Parameters
    ----------
    keys_file
        The keys file. Default: DATA/keys.toml.
    data
        The data directory.
    json
        Print JSON for machines.
    """
    from foreseen.tenants.edit_keys import listed

    found = listed(keys_file or data / _FILE)
    if json:
        print(msgspec.json.encode(found).decode())
        return
    for one in found:
        until = "" if one.expires_at is None else f"  until {datetime.fromtimestamp(one.expires_at, UTC):%Y-%m-%d}"
        keys, models = ", ".join(one.keys) or "none", ", ".join(one.models)
        print(f"{one.tenant}  scope {one.scope}  models {models}  keys {keys}{until}")
