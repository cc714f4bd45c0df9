"""The server under load, but for the load: is it there, would it answer, what does it say of itself."""

import json

from pdserve.clients.address import DEFAULT_PORTS, Address
from pdserve.clients.answers import key_refused, no_tls
from pdserve.clients.credentials import Access
from pdserve.clients.tls import tls_context
from pdserve.errors import ClientError, UnreachableError
from pdserve.tools.bench.connection import HttpConnection, request_head
from pdserve.tools.bench.stages import Counters, read_counters
from pdserve.tools.bench.target import FailedError, Target

_READY_TIMEOUT_S = 5.0
_FIRST_TIMEOUT_S = 10.0

# Answers that no repetition will better: a wrong key, a route that is not there. Anything else is measured.
_HOPELESS = frozenset(("403", "404", "405", "PERMISSION_DENIED", "UNIMPLEMENTED"))
_HOPELESS_KINDS = frozenset(("200 no answer", "no HTTP", "err_no 3002"))


class Control:
    """Small questions to the HTTP door of a server: is it ready, what do its numbers say."""

    def __init__(self, address: Address, access: Access) -> None:
        self.address = address
        self._tls = tls_context(access.ca) if address.scheme == "https" else None
        self._headers = tuple(access.headers.items())

    async def _get(self, path: str) -> tuple[int, bytes]:
        connection = HttpConnection(self.address, self._tls)
        try:
            head = request_head(self.address, "GET", path, self._headers)
            return await connection.exchange(head, _READY_TIMEOUT_S)
        finally:
            connection.close()

    async def check_ready(self, service: str) -> None:
        """Raise UnreachableError where nobody answers, ClientError where the server is not ready.

        A published Paddle Serving server knows no such question; that it answers at all is enough.
        """
        try:
            status, _ = await self._get("/v2/health/ready")
        except FailedError as error:
            raise _not_there(self.address, service, error) from error
        if status == 503:
            raise ClientError(f"{self.address} is not ready (503); wait until it says so and try again.")

    async def service(self) -> str | None:
        """The kind of the service that a pdserve server offers; None where there is none to say so."""
        try:
            status, body = await self._get("/v2")
            offered = json.loads(body)["extensions"] if status == 200 else ()
            return next((kind for kind in DEFAULT_PORTS if kind in offered), None)
        except (FailedError, ValueError, KeyError, TypeError):
            return None

    async def counters(self) -> Counters | str:
        """What ``/metrics`` says of stages and batches, or why it says nothing."""
        try:
            status, body = await self._get("/metrics")
        except FailedError as error:
            return f"/metrics did not answer: {error.kind}"
        if status != 200:
            return f"/metrics answers {status}"
        try:
            counters = read_counters(body.decode("utf-8", "replace"))
        except ValueError:
            return "/metrics is not in Prometheus's text format"
        # An answer for anything, as the published gateway gives, or another program's numbers.
        return counters or "/metrics has no stages of pdserve"


async def check_first(target: Target, timeout_s: float, service: str, access: Access) -> None:
    """One request, to learn of what would fail every time: a wrong key, a route that is not there.

    Raises UnreachableError, KeyRefusedError and ClientError.
    """
    client = target.connect()
    try:
        await client.ask(0, min(timeout_s, _FIRST_TIMEOUT_S))
    except FailedError as error:
        if error.no_connection:
            raise _not_there(target.server, service, error) from error
        word = error.kind.split(" ")[0]
        if word in ("401", "UNAUTHENTICATED"):
            raise key_refused(target.server, access.api_key is not None) from error
        if word in _HOPELESS or error.kind in _HOPELESS_KINDS:
            what = ": ".join(filter(None, (error.kind, error.detail)))
            raise ClientError(
                f"{target.server} refuses the first request of route {target.route} ({what}); "
                "check --route, --service and --name."
            ) from error
    finally:
        await client.close()


def _not_there(address: Address, service: str, error: FailedError) -> ClientError:
    if error.kind in ("connection closed", "connection reset") or "Socket closed" in error.detail:
        return ClientError(
            f"{address} hung up; if it speaks TLS, write https:// before its address, grpcs:// for gRPC."
        )
    detail = f": {error.detail}" if error.kind == "UNAVAILABLE" else ""
    return no_tls(address, error.detail) or UnreachableError(
        f"{address} cannot be reached ({error.kind}{detail}); start the server with "
        f"`pdserve serve {service}`, or say where it is: `pdserve bench http://host:port`."
    )
