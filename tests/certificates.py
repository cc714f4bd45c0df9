"""Certificates for 127.0.0.1 and localhost, of an authority that nobody else trusts."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """PEM files: a server's certificate and key, and the authority's certificate, ``ca``."""

    cert: Path
    key: Path
    ca: Path


def issue(folder: Path, *names: str) -> Certificates:
    """Make an authority, and a server's certificate for these names."""
    authority = trustme.CA()
    issued = authority.issue_cert(*(names or ("127.0.0.1", "localhost")))
    made = Certificates(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    folder.mkdir(parents=True, exist_ok=True)
    made.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(made.key))
    authority.cert_pem.write_to_path(str(made.ca))
    return made
