"""A certificate for localhost, for the peers that speak TLS and for their load."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from .programs import ProgramError, find, last_line


@functools.cache
def certificate() -> Path:
    """A file with a certificate that signs itself, and its key: P-256, by openssl.

    It is made once, and removed when this process ends.

    Raises:
      ProgramError: openssl has failed.
    """
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [find("openssl") or "openssl", "req", "-x509", "-nodes", "-days", "1"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(cert)]
    made = subprocess.run(command, capture_output=True)
    if made.returncode:
        raise ProgramError(f"openssl says {last_line(made.stderr)}")
    both = folder / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    return both
