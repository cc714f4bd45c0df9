"""Several services at one server: ``/v1/services`` lists them, loads and unloads them by name."""

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import RequestError
from pdserve.services.http.messages import json_response, operation
from pdserve.services.net import is_loopback
from pdserve.services.protocols import Context, Endpoint, Route
from pdserve.services.repository import Listed
from pdserve.settings import ServerSettings

PATH = "/v1/services"


class NotTheOperatorError(RequestError):
    """Who asks for a change of the services is not known to be allowed to."""

    code = "not_the_operator"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


def check_operator(address: str, settings: ServerSettings) -> None:
    """Raise NotTheOperatorError for a caller of another machine, where the server asks for no key."""
    keyed = settings.api_key is not None or settings.api_key_file is not None
    if not keyed and not is_loopback(address):
        raise NotTheOperatorError(
            "Services are loaded and unloaded from the server's own machine, or with a key; "
            "start the server with --api-key FILE."
        )


@dataclass(frozen=True)
class ServiceList:
    """The server's services, loaded or not."""

    services: list[Listed]


def routes(context: Context) -> Iterator[Route]:
    """The routes of a server with several services; none of one with one alone."""
    services = context.services
    if services.alone:
        return

    async def show(_: Request) -> Response:
        return json_response(ServiceList(services.index()))

    def changing(change: Callable[[str], Coroutine[Any, Any, None]], name: str) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            check_operator(request.client.host if request.client else "", context.settings)
            # Whoever asked may leave: what was begun is finished.
            await services.finish(change(name))
            return json_response(next(each for each in services.index() if each.name == name))

        return endpoint

    yield Route("GET", PATH, show, operation("services", "The services of this server", ServiceList))
    for name, _ in services:
        load = operation("services", f"Load or reload {name}", Listed, (403, 404, 500, 503))
        yield Route("POST", f"{PATH}/{name}/load", changing(services.load, name), load, writes=True)
        unload = operation("services", f"Unload {name}", Listed, (403, 404, 500, 503))
        yield Route("POST", f"{PATH}/{name}/unload", changing(services.unload, name), unload, writes=True)
