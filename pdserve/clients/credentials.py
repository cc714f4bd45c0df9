"""How a client comes in: the key that it shows, and whether and with whom it speaks TLS."""

from dataclasses import dataclass, field
from pathlib import Path

from pdserve.clients.api_keys import check_key


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
