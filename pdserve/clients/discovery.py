"""Find the server to ask: in the register of running servers, or at the default ports of this machine."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pdserve.clients.address import Address, http_address, is_this_machine, rpc_address
from pdserve.clients.credentials import NO_ACCESS, Access
from pdserve.errors import UsageError
from pdserve.models import servers
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES


@dataclass(frozen=True)
class FoundServer:
    """A server of this machine: its kind, and its addresses; None for one that it does not have.

    ``names``: of its services of that kind, where it has several services.
    """

    kind: str
    http: str | None
    rpc: str | None
    names: tuple[str, ...] = ()

    def address(self, rpc: bool) -> str | None:
        """Where it is asked over HTTP, or gRPC."""
        return self.rpc if rpc else self.http


def find_server(
    service: str | None = None,
    rpc: bool = False,
    access: Access = NO_ACCESS,
    home: Home | None = None,
    name: str | None = None,
) -> FoundServer:
    """The server to ask where no address is given: one of this user's on any port, or at a default port.

    ``service``: its kind, and ``name`` its name among several, where that matters. ``home``: whose register
    is read, that of the environment where it is not given. With ``access`` for TLS those without are passed
    over. Where nothing runs it is the service's default ports, or those of classification, whose client then
    says so. Raises UsageError where several run, with all their addresses, and where no service of that name
    does.
    """
    running = _registered(home)
    taken = {address.port for each in running for address in _addresses(each)}
    usual = [_usual(kind, access) for kind in SERVICES]
    running += [
        each for each in usual if not taken & {at.port for at in _addresses(each)} and _listens(each, rpc)
    ]
    found = [
        each
        for each in running
        if service in (None, each.kind)
        and (name is None or name in each.names)
        and _listens(each, rpc)
        and (not access.wants_tls or _address(each, rpc).scheme in ("https", "grpcs"))
    ]
    if len(found) > 1:
        raise UsageError(_several(found, rpc))
    if name is not None and not found:
        known = ", ".join(each for server in running for each in server.names) or "none that has a name"
        raise UsageError(f"No service {name!r} runs here; there is {known}. Name its server with --url.")
    return found[0] if found else _usual(service or "classification", access)


def find_service(
    url: str | None,
    rpc: bool = False,
    access: Access = NO_ACCESS,
    home: Home | None = None,
    name: str | None = None,
) -> str:
    """The kind of the service at ``url``, or of what `find_server` finds; ``name``: among several there.

    A pdserve server is asked over HTTP; one that does not say, and gRPC, is known by the register, else by
    its port. Raises UsageError where several run.
    """
    if url is None:
        return find_server(None, rpc, access, home, name).kind
    if not rpc:
        from pdserve.clients.http import HttpClient

        with HttpClient(url, timeout=5, api_key=access.api_key, tls=access.tls, ca=access.ca) as client:
            if kind := client.service_kind(name):
                return kind
    wanted = rpc_address(url) if rpc else http_address(url)
    if is_this_machine(wanted.host):
        for each in _registered(home):
            here = each.address(rpc) and _address(each, rpc).port == wanted.port
            if here and (name is None or not each.names or name in each.names):
                return each.kind
    return next((kind for kind, entry in SERVICES.items() if wanted.port in entry.ports), "classification")


def _registered(home: Home | None) -> list[FoundServer]:
    """The servers of the register; those with an address of another machine left out: no key goes there."""
    found = []
    for each in servers.of_this_user(home or Home.from_environ(os.environ)):
        for kind in dict.fromkeys(kind for _, kind in each.services) or (each.kind,):
            names = tuple(name for name, its in each.services if its == kind)
            server = FoundServer(kind, each.http, each.rpc, names)
            with suppress(UsageError):
                if kind in SERVICES and all(is_this_machine(at.host) for at in _addresses(server)):
                    found.append(server)
    return found


def _usual(kind: str, access: Access) -> FoundServer:
    """A server of this kind at its default ports."""
    entry, tls = SERVICES[kind], access.wants_tls
    return FoundServer(
        kind,
        f"{'https' if tls else 'http'}://127.0.0.1:{entry.http_port}",
        f"{'grpcs://' if tls else ''}127.0.0.1:{entry.rpc_port}",
    )


def _address(server: FoundServer, rpc: bool) -> Address:
    text = server.address(rpc) or ""
    return rpc_address(text) if rpc else http_address(text)


def _addresses(server: FoundServer) -> list[Address]:
    return [_address(server, rpc) for rpc in (False, True) if server.address(rpc)]


def _listens(server: FoundServer, rpc: bool) -> bool:
    if not server.address(rpc):
        return False
    at = _address(server, rpc)
    try:
        socket.create_connection((at.host, at.port), 0.5).close()
    except OSError:
        return False
    return True


def _several(found: Sequence[FoundServer], rpc: bool) -> str:
    names = [f"{each.kind} at {_address(each, rpc)}" for each in found]
    kinds = {each.kind for each in found}
    how = "--service or --url" if len(kinds) > 1 else "--url"
    if any(each.names for each in found):
        how = f"--name or {how.removeprefix('--service or ')}"
    return f"Here run {', '.join(names[:-1])} and {names[-1]}; say which with {how}."
