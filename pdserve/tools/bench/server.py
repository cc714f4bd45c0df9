"""The server under load, apart from the load: is it ready, where does its time go."""

from collections.abc import Callable, Mapping

from pdserve.clients.address import Address
from pdserve.clients.credentials import Access, key_refused, no_tls, tls_context
from pdserve.errors import ClientError, UnreachableError
from pdserve.tools.bench.http import HttpConnection, request_head
from pdserve.tools.bench.run import Batches, FailedError, ServerSide, Stage, Target

_READY_TIMEOUT_S = 5.0
_FIRST_TIMEOUT_S = 10.0

# Answers that a repetition will not change: a wrong key, a missing route. Anything else is measured.
_HOPELESS = frozenset(("403", "404", "405", "PERMISSION_DENIED", "UNIMPLEMENTED"))
_HOPELESS_KINDS = frozenset(("200 no answer", "no HTTP", "err_no 3002"))

_STAGES = "pdserve_stage_seconds"
_BATCHES = "pdserve_batch_images"
# The way of an image through a server; an unknown stage comes after these.
_ORDER = ("decode", "preprocess", "queue", "infer", "detect", "embed", "postprocess", "search")

Counters = Mapping[tuple[str, str, str], tuple[float, float]]
"""(family, stage, model) -> (sum, count)."""


class ServerProbe:
    """Small requests to a server's HTTP address: is it ready, what do its metrics say."""

    def __init__(self, address: Address, access: Access) -> None:
        self.address = address
        self._tls = tls_context(access.ca) if address.scheme == "https" else None
        self._headers = access.headers

    async def _get(self, path: str) -> tuple[int, bytes]:
        connection = HttpConnection(self.address, self._tls)
        try:
            head = request_head(self.address, "GET", path, self._headers)
            return await connection.exchange(head, _READY_TIMEOUT_S)
        finally:
            await connection.close()

    async def check_ready(self, service: str) -> None:
        """Raise UnreachableError where nothing answers, ClientError where the server is not ready.

        A published Paddle Serving server has no such route; that it answers at all is enough.
        """
        try:
            status, _ = await self._get("/v2/health/ready")
        except FailedError as error:
            raise _unreachable(self.address, service, error) from error
        if status == 503:
            raise ClientError(f"{self.address} is not ready (503); wait until it is and try again.")

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
        # An answer to any path, as the published gateway gives, or another program's metrics.
        return counters or "/metrics has no stages of pdserve"


class StageReader:
    """Reads a server's metrics at the start and the end of runs; notes once why it cannot."""

    def __init__(self, probe: ServerProbe | None, note: Callable[[str], None]) -> None:
        self._probe = probe
        self._note = note
        self._before: Counters | None = None
        self._is_off = False

    async def mark(self) -> None:
        """A run's measured part starts."""
        self._before = await self._read()

    async def since_mark(self) -> ServerSide | None:
        """The server's figures since; None where there are none."""
        if self._before is None:
            return None
        after = await self._read()
        return None if after is None else between(self._before, after)

    async def _read(self) -> Counters | None:
        if self._is_off:
            return None
        found = await self._probe.counters() if self._probe else "give the server's HTTP address too"
        if isinstance(found, str):
            self._is_off = True
            self._note(f"The server's stages are left out: {found}.")
            return None
        return found


def read_counters(text: str) -> Counters:
    """The sums and counts of stages and batches in Prometheus's text format.

    Raises ValueError for a text that is not of that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    parts: dict[tuple[str, str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.name in (_STAGES, _BATCHES):
            for sample in family.samples:
                key = (family.name, sample.labels.get("stage", ""), sample.labels.get("model", ""))
                parts.setdefault(key, {})[sample.name.removeprefix(family.name)] = sample.value
    return {key: (part.get("_sum", 0.0), part.get("_count", 0.0)) for key, part in parts.items()}


def between(before: Counters, after: Counters) -> ServerSide | None:
    """What happened between two readings; None where nothing did, or the server restarted in between."""
    stages: list[Stage] = []
    batches: list[Batches] = []
    for (family, stage, model), (total, count) in after.items():
        total_before, count_before = before.get((family, stage, model), (0.0, 0.0))
        passes = int(count - count_before)
        if passes < 0:
            return None
        if passes:
            mean = (total - total_before) / passes
            if family == _STAGES:
                stages.append(Stage(stage, model, 1000 * mean, passes))
            else:
                batches.append(Batches(model, mean, passes))
    if not stages and not batches:
        return None
    stages.sort(key=lambda s: _ORDER.index(s.stage) if s.stage in _ORDER else len(_ORDER))
    return ServerSide(tuple(stages), tuple(batches))


async def check_first(target: Target, timeout_s: float, service: str, access: Access) -> None:
    """Send one request, to find what would fail every time: a wrong key, a missing route.

    Raises UnreachableError, KeyRefusedError and ClientError.
    """
    client = target.connect()
    try:
        await client.ask(0, min(timeout_s, _FIRST_TIMEOUT_S))
    except FailedError as error:
        if error.no_connection:
            raise _unreachable(target.server, service, error) from error
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


def _unreachable(address: Address, service: str, error: FailedError) -> ClientError:
    if error.kind in ("connection closed", "connection reset") or "Socket closed" in error.detail:
        return ClientError(
            f"{address} closed the connection; if it uses TLS, write https:// before its address, "
            "grpcs:// for gRPC."
        )
    detail = f": {error.detail}" if error.kind == "UNAVAILABLE" else ""
    return no_tls(address, error.detail) or UnreachableError(
        f"{address} cannot be reached ({error.kind}{detail}); start the server with "
        f"`pdserve serve {service}`, or give its address: `pdserve bench http://host:port`."
    )
