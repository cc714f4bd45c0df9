"""Fetches images that a request names by address, from the hosts that the operator allows and no others.

An address is a request that the server makes for a stranger, from where it stands: in a network whose other
machines trust it. So hosts are listed (``--allow-image-urls``), and a listed name that means a private
address reaches it only where that address is listed too. A name is looked up once for each connection, and
the connection goes to the address that was judged: a second look-up could give another (DNS rebinding).
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pdserve.errors import BodyTooLargeError, RequestError, SettingsError
from pdserve.services.budget import STEP, Entrance, Reservation
from pdserve.services.http.bodies import RESERVATIONS
from pdserve.services.protocols import Scope

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 64 * 1024 * 1024
"""Of an image that is fetched; ``max_body_bytes`` where that is less."""

TIMEOUT_S = 10.0
"""For all of a fetch: looking up, connecting, redirects, the last byte."""

MAX_FETCHES = 16
"""At once; more wait their turn, within their time."""

_MAX_REDIRECTS = 3
_LONGEST = 2048
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class AddressError(RequestError):
    """An address that is not fetched from, or gave no image."""

    code = "image_url"


def is_address(text: str) -> bool:
    """Whether a text is an address, and no image in base64."""
    return text[:8].lower().startswith(("http://", "https://"))


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host's name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


class ImageFetcher:
    """Fetches images, within the limits above and the entrance's budget for bodies.

    ``allow_image_urls`` of its settings: hosts, each a name or an address, with a port after a colon where it
    is not the usual one. Raises SettingsError for one that is neither.
    """

    def __init__(self, entrance: Entrance, look_up: Resolver = resolve) -> None:
        self._entrance = entrance
        self._look_up = look_up
        self._turn = asyncio.Semaphore(MAX_FETCHES)
        self._allowed = {_listed(each) for each in entrance.settings.allow_image_urls}
        self._addresses = {address for host, _ in self._allowed if (address := _literal(host))}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def fetch(self, url: str, scope: Scope) -> bytes:
        """The file at an address; the memory is reserved until the request of ``scope`` ends.

        Raises AddressError, BodyTooLargeError, OverloadedError.
        """
        self._judged(url)
        reservation = await self._entrance.bodies.reserve(STEP)
        scope.setdefault(RESERVATIONS, []).append(reservation)
        try:
            async with asyncio.timeout(TIMEOUT_S), self._turn:
                if url[:6].lower() == "https:":
                    await asyncio.to_thread(getattr, self, "_tls")  # which reads files
                return await self._followed(url, reservation)
        except TimeoutError:
            raise AddressError(
                f"The image did not come from its address within {TIMEOUT_S:g} s; send the file in base64."
            ) from None

    async def _followed(self, url: str, reservation: Reservation) -> bytes:
        first = self._judged(url)
        for _ in range(_MAX_REDIRECTS + 1):
            data, location = await self._once(url, reservation)
            if location is None:
                return data
            url = str(first.join(location))
            found = self._judged(url)
            if (_host(found), found.port) != (_host(first), first.port) or found.scheme < first.scheme:
                raise AddressError(
                    "The image's address leads to another one, of another host, port or scheme; name that, "
                    "or send the file in base64."
                )
            first = found
        raise AddressError(f"The image's address leads on more than {_MAX_REDIRECTS} times; send the file.")

    async def _once(self, url: str, reservation: Reservation) -> tuple[bytes, str | None]:
        """The file, or where it is instead."""
        import httpx

        parts = self._judged(url)
        name = _host(parts)
        address = await self._address(name, parts.port or _PORTS[parts.scheme])
        host = f"[{name}]" if ":" in name else name
        headers = {
            "Host": host if parts.port is None else f"{host}:{parts.port}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        # The connection goes to the address that was judged, the request and the certificate to the name.
        there = parts.copy_with(host=str(address), fragment=None)
        request = httpx.Request("GET", there, headers=headers, extensions={"sni_hostname": name})
        context: ssl.SSLContext | bool = self._tls if parts.scheme == "https" else False
        try:
            async with (
                httpx.AsyncClient(verify=context, trust_env=False, timeout=TIMEOUT_S) as client,
                contextlib.aclosing(await client.send(request, stream=True)) as response,
            ):
                return await self._read(response, reservation)
        except httpx.HTTPError as error:
            raise AddressError(
                f"The image cannot be fetched from its address ({type(error).__name__}); send the file."
            ) from error

    async def _read(self, response: "httpx.Response", reservation: Reservation) -> tuple[bytes, str | None]:
        if response.status_code in _REDIRECTS and (location := response.headers.get("location")):
            return b"", str(location)
        if response.status_code != 200:
            raise AddressError(f"The image's address answers {response.status_code}; send the file.")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AddressError("The image's address answers with something compressed; send the file.")
        limit = min(MAX_BYTES, self._entrance.settings.max_body_bytes, self._entrance.bodies.limit)
        data = bytearray()
        async for piece in response.aiter_raw():
            if len(data) + len(piece) > limit:
                raise BodyTooLargeError(f"The image at the address has more than {limit} bytes, the limit.")
            if len(data) + len(piece) > reservation.amount:
                await reservation.grow(len(piece) + STEP)
            data += piece
        reservation.shrink(len(data))
        return bytes(data), None

    def _judged(self, url: str) -> "httpx.URL":
        """The parts of an address that is allowed. Raises AddressError."""
        import httpx

        if not self._allowed:
            raise AddressError(
                "The image is an address, and this server fetches nothing; send the file in base64, or start "
                "the server with --allow-image-urls HOST."
            )
        try:
            parts = httpx.URL(url[: _LONGEST + 1])
            scheme, host, port = parts.scheme, _host(parts), parts.port
        except (httpx.InvalidURL, ValueError):
            raise AddressError("The image's address is none; send the file in base64.") from None
        if len(url) > _LONGEST or scheme not in _PORTS or not host or parts.userinfo:
            raise AddressError(
                f"An image's address is http:// or https://, a host and a path, of at most {_LONGEST} "
                "characters; send the file in base64."
            )
        usual = None if port in (None, *_PORTS.values()) else port
        if (host, usual) not in self._allowed:
            where = f"{host[:100]}:{usual}" if usual else host[:100]
            raise AddressError(f"This server fetches nothing from {where}; send the file in base64.")
        return parts

    async def _address(self, host: str, port: int) -> Address:
        """Look a host up, and choose an address of it that may be reached. Raises AddressError."""
        try:
            given = _literal(host)
            found = [given] if given else [_plain(each) for each in await self._look_up(host, port)]
        except (OSError, ValueError):
            raise AddressError(f"The host {host[:100]} of the image's address is not found.") from None
        for address in found:
            if address in self._addresses or is_public(address):
                return address
        raise AddressError(
            f"The host {host[:100]} of the image's address is a private one, whose own address is not listed."
        )


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet's; those that carry another one are as that one is."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _host(parts: "httpx.URL") -> str:
    """The host as it is looked up: in ASCII and small letters, an address in its usual form."""
    host = parts.raw_host.decode("ascii").lower()
    literal = _literal(host)
    return str(literal) if literal else host


def _plain(text: str) -> Address:
    """An address without its zone."""
    return ipaddress.ip_address(text.partition("%")[0])


def _literal(host: str) -> Address | None:
    """The address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _listed(text: str) -> tuple[str, int | None]:
    """A host of the list, and its port where it is not the usual one. Raises SettingsError."""
    host, port = text.strip().lower(), ""
    if host.startswith("[") and "]" in host:
        host, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else None
    if not host or any(c in host for c in "/*@ ") or (port and not (number and number < 65536)):
        raise SettingsError(
            f"--allow-image-urls is {text!r}; it must be a host, as images.example.com, 192.0.2.7 or "
            "images.example.com:8080."
        )
    literal = _literal(host)
    return str(literal) if literal else host, None if number in (None, *_PORTS.values()) else number
