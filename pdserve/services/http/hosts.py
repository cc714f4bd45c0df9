"""Names by which callers may reach the server: the ``Host`` of a request must be one of them.

A web page can make its own name mean this machine (DNS rebinding): the browser then takes the server for the
page's own, sends what it wants and shows it the answers. What gives it away is the name in ``Host``, which
has to be one that somebody could register. Addresses, and names that the public DNS does not have, are no
use to such a page, and are taken: they are how probes, containers and neighbours ask.
"""

import contextlib
import functools
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pdserve.errors import RequestError, SettingsError
from pdserve.services.http.messages import error_response
from pdserve.services.protocols import App, Receive, Resource, Scope, Send
from pdserve.settings import ServerSettings

ANY = "*"

# Domains that nobody can register: RFC 6761, RFC 6762, ICANN's for private use, and Kubernetes' services.
_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc")
_NAME = re.compile(
    r"(?=.{1,253}$)(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*"
)
# As long as a host and its port may be, and a dot.
_LONGEST = 253 + 1 + 6


class UnknownHostError(RequestError):
    """The request is for a host that the server does not go by."""

    code = "unknown_host"
    http_status = 421
    grpc_status = "PERMISSION_DENIED"


class HostHeaderError(RequestError):
    """The request names more than one host."""

    code = "bad_host"


class Hosts:
    """The hosts that a server goes by."""

    def __init__(self, names: Iterable[str]) -> None:
        """``names``: in small letters; ``*.NAME`` stands for all below it, ``*`` for any."""
        self._names = frozenset(names)
        self._below = tuple(name[1:] for name in self._names if name.startswith("*."))
        # Bounded, since callers choose what is looked up.
        self.admits = functools.lru_cache(256)(self._admits)

    def check(self, scope: Scope) -> None:
        """Raises UnknownHostError, or HostHeaderError for two. None at all, as in HTTP/1.0, will do.

        A browser always sends one, and only one.
        """
        if ANY in self._names:
            return
        sent = [value for name, value in scope["headers"] if name == b"host"]
        if len(sent) > 1:
            raise HostHeaderError("The request has more than one Host.")
        if sent and (len(sent[0]) > _LONGEST or not self.admits(sent[0])):
            name = host_name(sent[0][: _LONGEST + 1])
            raise UnknownHostError(
                f"This server does not go by the name {name!r}; if it should, start it with "
                f"--allowed-host {name if _NAME.fullmatch(name) else 'NAME'}."
            )

    def _admits(self, host: bytes) -> bool:
        name = host_name(host)
        if name in self._names or not name or name.endswith((*_PRIVATE_DOMAINS, *self._below)):
            return True
        if "." not in name and ":" not in name:
            return True
        return _is_address(name)


def host_name(host: bytes) -> str:
    """The name or address in a ``Host``, in small letters, without port, brackets and the root's dot."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name, colon, port = text.rpartition(":")
    return (name if colon and (port.isdecimal() or not port) else text).removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def allowed_hosts(settings: ServerSettings, *, keyed: bool) -> Hosts:
    """The hosts of a server: ``--allowed-host``, the one it listens on, and this machine's name.

    ``keyed``: a key is asked for, which no page of a stranger has; any name will do then, unless some are
    given. Raises SettingsError for what is no name.
    """
    given = [_checked(name) for name in settings.allowed_hosts]
    if keyed and not given:
        return Hosts([ANY])
    return Hosts([*given, settings.host.lower(), *_own_names()])


def _checked(name: str) -> str:
    if name.strip() == ANY:
        return ANY
    plain = name.strip().lower().removesuffix(".")
    if _is_address(plain):
        return plain
    with contextlib.suppress(UnicodeError):  # as browsers send what is not ASCII
        plain = plain if plain.isascii() else plain.encode("idna").decode("ascii")
    if not _NAME.fullmatch(plain):
        raise SettingsError(
            f"--allowed-host: {name!r} is no host name; give a name alone, without http:// and port, as in "
            "api.example.com, *.example.com for all below it, or * for any."
        )
    return plain


def _own_names() -> Iterator[str]:
    """This machine's name, and with the domains in which it looks for others'. Asks no other machine."""
    name = socket.gethostname().lower()
    yield name
    with contextlib.suppress(OSError):
        lines = Path("/etc/resolv.conf").read_text("utf-8", "replace").splitlines()
        for word, *domains in filter(None, map(str.split, lines)):
            if word in ("search", "domain"):
                yield from (f"{name.partition('.')[0]}.{domain.lower().strip('.')}" for domain in domains)


def require_host(app: App, hosts: Hosts, find: Callable[[str], Resource | None]) -> App:
    """The same ASGI application for requests to a host that the server goes by; others get a 421.

    ``find``: the resource at a path; those of open protocols (health) are for everybody, under any name: a
    probe must not fail for the name that it has, and what health says is no secret.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        answer = app
        try:
            hosts.check(scope)
        except RequestError as error:
            resource = find(scope["path"])
            protocol = resource.protocol if resource else None
            if not (protocol and protocol.open and scope["method"] in ("GET", "HEAD")):
                path, status = scope["path"], error.http_status
                answer = error_response(path, protocol, status, error.code, error.message)
        await answer(scope, receive, send)

    return application
