"""``pdserve load`` and ``pdserve unload``: a service of a running server, by name."""

import os
from typing import Annotated

import typer

from pdserve import console
from pdserve.clients.credentials import Access, key_to_send
from pdserve.commands import options as o
from pdserve.errors import UsageError

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.")]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="ADDRESS", help="http(s)://host:port; default: the server that has it."),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Time to wait for the end.")
]


def load(
    name: NameArgument,
    url: UrlOption = None,
    timeout: TimeoutOption = 600,
    as_json: o.Json = False,
    api_key: o.ApiKeyOption = None,
    tls: o.TlsOption = False,
    ca: o.CaOption = None,
) -> None:
    """Load a service of a running server that has several, with its models and settings as they are now.

    One that is loaded is loaded again, without a failed request. Nothing is downloaded.
    """
    _change("load", name, url, timeout, as_json, Access(key_to_send(api_key, os.environ), tls, ca))


def unload(
    name: NameArgument,
    url: UrlOption = None,
    timeout: TimeoutOption = 600,
    as_json: o.Json = False,
    api_key: o.ApiKeyOption = None,
    tls: o.TlsOption = False,
    ca: o.CaOption = None,
) -> None:
    """Unload a service of a running server that has several, and free its models.

    Requests that run are answered first; later ones get 404 until it is loaded again.
    """
    _change("unload", name, url, timeout, as_json, Access(key_to_send(api_key, os.environ), tls, ca))


def _change(what: str, name: str, url: str | None, timeout: float, as_json: bool, access: Access) -> None:
    from pdserve.clients.http import HttpClient

    at = url or _server_of(name)
    with HttpClient(at, timeout=timeout, api_key=access.api_key, tls=access.tls, ca=access.ca) as client:
        state = client.change_service(name, what)
    if as_json:
        console.json_line(state)
    else:
        console.say(f"{name} at {at} is {str(state.get('state', '')).lower()}.")


def _server_of(name: str) -> str:
    """The address of the server of this user and machine that has a service. Raises UsageError."""
    from pdserve.models import servers

    running = [each for each in servers.of_this_user(o.home()) if each.services and each.http]
    found = [each.http for each in running if name in dict(each.services)]
    if len(found) == 1 and found[0]:
        return found[0]
    if found:
        raise UsageError(f"{name} is served at {' and '.join(map(str, found))}; say which with --url.")
    known = ", ".join(each for server in running for each, _ in server.services)
    here = f"running are {known}" if known else "no server with several services runs here"
    raise UsageError(f"There is no running service {name!r}: {here}; --url names a server.")
