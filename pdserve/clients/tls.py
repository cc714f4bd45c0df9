"""Whom a client trusts when it speaks TLS: the usual authorities, or those in a PEM file alone."""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from pdserve.errors import UsageError

if TYPE_CHECKING:
    import grpc


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """For HTTP. Raises UsageError for a file that holds no certificate."""
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise UsageError(f"--ca {ca} holds no certificate in PEM form.") from error
    except OSError as error:
        raise UsageError(f"Cannot read --ca {ca}: {error.strerror}.") from error


def channel_credentials(ca: Path | None) -> "grpc.ChannelCredentials":
    """For gRPC, whose usual authorities are of its own package. Raises as `tls_context` does."""
    import grpc

    if ca is None:
        return grpc.ssl_channel_credentials()
    tls_context(ca)  # gRPC itself says nothing of a bad file before it connects, and little then
    return grpc.ssl_channel_credentials(ca.read_bytes())
