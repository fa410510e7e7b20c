"""Commands for keys of tenants and operators, in a keys file."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter

keys_app = App(name="keys", help="Add, list and revoke keys of tenants.")
Tenant = Annotated[str, Parameter(env_var=())]
Role = Literal["operator", "viewer"]


@keys_app.command
def add(
    tenant: Tenant, /, *, role: Role | None = None, keys_file: Path | None = None, data: Path = Path("data")
) -> None:
    """Make a key for a tenant, an operator or a viewer, and print it once. Only its hash is written to the file.

    Parameters
    ----------
    tenant
        The tenant, or the name of an operator or viewer. Created if the file does not have it.
    role
        Make a key for an operator or a viewer.
    keys_file
        The keys file. Default: DATA/keys.toml, or DATA/admin-keys.toml for operators and viewers.
    data
        The data directory.
    """
    from foreseen.operate.started import read_started
    from foreseen.tenants.edit_keys import add_key, shown_digits

    path = keys_file or _file(data, role)
    key = add_key(path, tenant, role or "tenant")
    print(key)
    said = f"{path} holds its hash, {shown_digits(key)}…; proxies that use the file take it within two seconds"
    started = read_started(data)
    if role is None and started is not None and "keys_file" not in started:
        said += f". The system of {data} was started without a keys file: start it with --keys-file {path}"
    print(said, file=sys.stderr)


@keys_app.command
def revoke(
    tenant: Tenant,
    /,
    *,
    digits: str | None = None,
    role: Role | None = None,
    keys_file: Path | None = None,
    data: Path = Path("data"),
) -> None:
    """Revoke all keys of a tenant, or one. Proxies refuse them within two seconds.

    Parameters
    ----------
    tenant
        The tenant. It stays in the file.
    digits
        The first digits of one key's hash, as `foreseen keys list` shows them.
    role
        Revoke keys of an operator or a viewer.
    keys_file
        The keys file. Default: DATA/keys.toml, or DATA/admin-keys.toml for operators and viewers.
    data
        The data directory.
    """
    from foreseen.tenants.edit_keys import revoke_keys

    revoked = revoke_keys(keys_file or _file(data, role), tenant, digits, role or "tenant")
    print(f"revoked {revoked} of {tenant}")


@keys_app.command(name="list")
def list_(
    *, operators: bool = False, keys_file: Path | None = None, data: Path = Path("data"), json: bool = False
) -> None:
    """Show the tenants of a keys file: scope, models, expiry, and the first digits of each key's hash.

    Parameters
    ----------
    operators
        Show operators and viewers instead.
    keys_file
        The keys file. Default: DATA/keys.toml, or DATA/admin-keys.toml for operators and viewers.
    data
        The data directory.
    json
        Print JSON for machines.
    """
    from foreseen.tenants.edit_keys import listed, listed_administrators

    path = keys_file or _file(data, "operator" if operators else None)
    if operators and keys_file is None and not path.exists():
        print(f"{path}: not there yet, so {data / 'admin-token'} is the only operator's key", file=sys.stderr)
        return
    found = listed_administrators(path) if operators else listed(path)
    if json:
        print(msgspec.json.encode(found).decode())
        return
    for one in found:
        shown = {name: value for name, value in msgspec.structs.asdict(one).items() if value not in (None, [])}
        if "expires_at" in shown:
            shown["expires_at"] = f"{datetime.fromtimestamp(shown['expires_at'], UTC):%Y-%m-%d %H:%M}"
        print(
            "  ".join(
                f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in shown.items()
            )
        )


@keys_app.command(name="webhook-secret")
def webhook_secret(tenant: Tenant, /, *, webhook_secret_file: Path | None = None, data: Path = Path("data")) -> None:
    """Show the secrets with which a tenant's receivers verify its webhooks. Other tenants' secrets differ.

    Parameters
    ----------
    tenant
        The tenant; `public` for callers without one.
    webhook_secret_file
        The file of --webhook-secret-file. Default: DATA/webhook-secret.
    data
        The data directory.
    """
    from foreseen.queue.signing import Signer
    from foreseen.tenants.tenant import PUBLIC_TENANT, owner_of

    owner = PUBLIC_TENANT.owner if tenant == PUBLIC_TENANT.name else owner_of(tenant)
    print("\n".join(Signer(webhook_secret_file or data / "webhook-secret").secrets_of(owner)))


def _file(data: Path, role: Role | None) -> Path:
    return data / ("keys.toml" if role is None else "admin-keys.toml")
