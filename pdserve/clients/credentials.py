"""API keys and TLS of a client: what it sends to be admitted, and which certificates it trusts.

A key file has one key per line; blank lines and lines that begin with ``#`` are ignored. No message here
quotes a key, nor what might be one.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pdserve.clients.address import Address
from pdserve.errors import KeyRefusedError, SettingsError, UnreachableError, UsageError

if TYPE_CHECKING:
    import grpc

VARIABLE = "PDSERVE_API_KEY"

# What goes into a header and into gRPC's metadata as it is.
_KEY = re.compile(r"[!-~]+")

# The words of OpenSSL, as Python's ssl gives them, and of gRPC, which builds on BoringSSL.
_OTHER_NAMES = (
    "Hostname mismatch", "IP address mismatch", "Hostname Verification Check failed",
    "is not in peer certificate",
)  # fmt: skip
_UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED\W+(?:certificate verify failed: )?(.*?)(?: \(_ssl|: OK|$)"
)


@dataclass(frozen=True)
class Access:
    """``tls`` asks for TLS where the address does not say so; with ``ca``, a PEM file, none but its
    authorities are trusted. Raises SettingsError for a key that cannot be sent.
    """

    api_key: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None:
            check_key(self.api_key, "api_key")

    @property
    def wants_tls(self) -> bool:
        return self.tls or self.ca is not None

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries, as HTTP's headers or gRPC's metadata."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}


NO_ACCESS = Access()


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys in a file. Raises SettingsError for a file without any, and for one that cannot be read."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (PermissionError, IsADirectoryError) as error:
        raise SettingsError(f"Cannot read the file of keys {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The file of keys {file} is no text; it has one key a line.") from error
    except (OSError, ValueError):
        # A name that leads nowhere may be a key, which the error's own text would reveal.
        known = f" {file}" if file.parent != Path() and _is_folder(file.parent) else ""
        raise SettingsError(
            f"There is no such file of keys{known}; --api-key takes a file with one key a line, and a key "
            f"itself belongs in {VARIABLE}."
        ) from None
    keys = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    if not keys:
        raise SettingsError(f"The file of keys {file} has none; write one key a line into it.")
    for number, key in keys.items():
        check_key(key, f"{file}, line {number}")
    return tuple(dict.fromkeys(keys.values()))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_key(key: str, where: str) -> None:
    """Raise SettingsError for a key that cannot be sent as it is; ``where`` is what the message names."""
    if not _KEY.fullmatch(key):
        raise SettingsError(f"{where}: the key has other characters than ASCII letters, digits and signs.")


def key_to_send(file: Path | None, environ: Mapping[str, str]) -> str | None:
    """The key that a client sends: the first of a file, else PDSERVE_API_KEY; None where there is neither.

    Raises SettingsError.
    """
    if file:
        return read_keys(file)[0]
    key = environ.get(VARIABLE)
    if key:
        check_key(key, VARIABLE)
    return key or None


def key_refused(address: Address, sent: bool) -> KeyRefusedError:
    """The error of a 401: what to give. ``sent``: whether the request had a key."""
    what = "refuses the key that was sent; give another" if sent else "needs a key; give it"
    return KeyRefusedError(f"{address} {what} with --api-key FILE, or in {VARIABLE}.")


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """The TLS settings for HTTP, trusting the usual authorities or those of a PEM file.

    Raises UsageError for a file that holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise UsageError(f"--ca {ca} holds no certificate in PEM form.") from error
    except OSError as error:
        raise UsageError(f"Cannot read --ca {ca}: {error.strerror}.") from error


def channel_credentials(ca: Path | None) -> "grpc.ChannelCredentials":
    """The same for gRPC, whose usual authorities come with its package. Raises as `tls_context` does."""
    import grpc

    if ca is None:
        return grpc.ssl_channel_credentials()
    tls_context(ca)  # gRPC itself says nothing of a bad file before it connects, and little then
    return grpc.ssl_channel_credentials(ca.read_bytes())


def no_tls(address: Address, detail: str) -> UnreachableError | None:
    """Why the TLS handshake failed, from the words of OpenSSL or gRPC; None where that was not the cause."""
    if any(words in detail for words in _OTHER_NAMES):
        return UnreachableError(f"The certificate of {address} is for other names; ask by one of those.")
    if untrusted := _UNTRUSTED.search(detail):
        return UnreachableError(
            f"The certificate of {address} is not trusted ({untrusted[1]}); give its authority with "
            "--ca FILE."
        )
    if "WRONG_VERSION_NUMBER" in detail:
        return UnreachableError(f"{address} does not use TLS; connect without it.")
    return None
