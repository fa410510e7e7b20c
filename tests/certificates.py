"""Certificates made for one test by openssl: authorities, servers' and clients' certificates."""

from __future__ import annotations

import subprocess
from pathlib import Path

_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def authority(folder: Path, name: str = "ca") -> tuple[Path, Path]:
    """An authority's certificate and key."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl("req", "-x509", *_NEW, "-days", "2", "-subj", f"/CN={name}", "-keyout", str(made[1]), "-out", str(made[0]))
    return made


def signed(
    folder: Path,
    name: str,
    by: tuple[Path, Path],
    subject: str = "/CN=localhost",
    names: str = "IP:127.0.0.1,DNS:localhost",
) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, or other names, and its key; a client's, too."""
    request, extensions = folder / f"{name}.csr", folder / "extensions"
    made = folder / f"{name}.pem", folder / f"{name}.key"
    extensions.write_text(f"subjectAltName={names}\n")
    _openssl("req", *_NEW, "-subj", subject, "-keyout", str(made[1]), "-out", str(request))
    signer = ("-CA", str(by[0]), "-CAkey", str(by[1]), "-CAcreateserial", "-days", "2")
    _openssl("x509", "-req", "-in", str(request), *signer, "-extfile", str(extensions), "-out", str(made[0]))
    return made


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
