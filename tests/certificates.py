"""Certificates for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path, days: int, key: str = "ec") -> Path:
    """Write a self-signed certificate for this machine, and its key, as compose.tls.yaml expects.

    Args:
        folder: gets fullchain.pem and privkey.pem.
        days: until it expires.
        key: as openssl's -newkey; ec is a curve that every client knows.
    """
    kind = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"] if key == "ec" else [key]
    certificate, private = folder / "fullchain.pem", folder / "privkey.pem"
    options = {
        "-days": str(days),
        "-subj": "/CN=localhost",
        "-addext": "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-out": certificate,
        "-keyout": private,
    }
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", *kind]
    for option, value in options.items():
        command += [option, value]
    subprocess.run(command, check=True, capture_output=True)
    folder.chmod(0o755)  # nginx in a container is another user
    private.chmod(0o644)
    return certificate
