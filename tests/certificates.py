"""Certificates for tests: an authority, and what it has signed, as files."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path

import trustme


@dataclasses.dataclass
class Authority:
    """An authority whose certificates are written to a folder."""

    folder: Path
    ca: trustme.CA = dataclasses.field(default_factory=trustme.CA)

    @property
    def path(self) -> str:
        """The file with its own certificate."""
        path = self.folder / f"ca-{id(self)}.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return str(path)

    def issue(self, *names: str, common_name: str | None = None) -> str:
        """The file with a new certificate and its key."""
        issued = self.ca.issue_cert(*names, common_name=common_name)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)

    def client_context(self, cert: str | None = None) -> ssl.SSLContext:
        """The context of a client that trusts it."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if cert is not None:
            context.load_cert_chain(cert)
        return context
