"""One run of a load: what was sent where, and the figures that came of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pdserve.clients.address import Address

PERCENTILES = (50, 90, 95, 99)


class FailedError(Exception):
    """A request got no good answer.

    ``kind`` is what it is counted under: ``503 overloaded`` (HTTP status and the answer's code), a gRPC
    status's name, ``err_no 10000``, ``timeout``, ``connection refused``, ``connection reset``,
    ``connection closed`` and the like. ``detail`` is the server's message. ``no_connection``: the server
    was not even reached.
    """

    def __init__(self, kind: str, detail: str = "", *, no_connection: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
        self.no_connection = no_connection


class Connection(Protocol):
    """One client's connection. It opens at the first request, and again at the next after it broke."""

    async def ask(self, number: int, timeout_s: float) -> None:
        """Send the request of that number (they go round) and wait for a good answer, to all its images.

        Raises FailedError for anything else. Nothing is tried twice.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Target:
    """A route (v1, json, form, pipeline or grpc) of a server; ``batch``: images in a request.

    ``connect`` makes a new client.
    """

    route: str
    server: Address
    batch: int
    connect: Callable[[], Connection] = field(repr=False)


@dataclass(frozen=True)
class Load:
    """What is offered: ``clients`` in a closed loop, or ``rate`` arrivals per second in an open one.

    ``arrivals`` of an open loop are poisson or constant.
    """

    clients: int | None = None
    rate: float | None = None
    arrivals: str | None = None

    def __str__(self) -> str:
        if self.clients is None:
            return f"{self.rate:g}/s"
        return f"{self.clients} client" + ("s" if self.clients > 1 else "")


@dataclass(frozen=True)
class Stage:
    """``mean_ms`` of a stage over ``count`` passes, and its model ("" for none)."""

    stage: str
    model: str
    mean_ms: float
    count: int


@dataclass(frozen=True)
class Batches:
    """``mean`` images in ``count`` batches of a model."""

    model: str
    mean: float
    count: int


@dataclass(frozen=True)
class ServerSide:
    """The server's own figures of one run."""

    stages: tuple[Stage, ...]
    batches: tuple[Batches, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "stages": [
                {"stage": s.stage, "model": s.model, "mean_ms": round(s.mean_ms, 3), "count": s.count}
                for s in self.stages
            ],
            "batches": [
                {"model": b.model, "mean_images": round(b.mean, 3), "count": b.count} for b in self.batches
            ],
        }


@dataclass(frozen=True)
class Run:
    """One load on one route.

    ``answers`` and ``latencies`` are of good answers only: ``answers`` counts requests that were answered in
    the measured ``seconds``; ``latencies`` (seconds, float64) are in a closed loop those of the same
    requests, from sending to the whole answer, and in an open loop those of all requests that were due in
    the measured time, however late they were answered, from the moment they were due. ``errors`` counts the
    others by kind (see FailedError) and ``examples`` has one message of each. ``unsent`` were due in an open
    loop while too many were in flight, ``in_flight`` were unanswered when the time was up, ``lag_s`` is how
    late the generator itself was with an open loop's requests (99th percentile). ``started`` is in seconds
    since 1970, ``cpu_seconds`` the generator's own. ``interrupted``: it was stopped by Ctrl-C.
    """

    route: str
    address: str
    load: Load
    batch: int
    started: float
    seconds: float
    answers: int
    latencies: NDArray[np.float64] = field(repr=False)
    errors: Mapping[str, int]
    examples: Mapping[str, str]
    cpu_seconds: float
    unsent: int = 0
    in_flight: int = 0
    lag_s: float | None = None
    interrupted: bool = False
    server: ServerSide | None = None

    @property
    def requests_per_s(self) -> float:
        """Requests with a good answer, per second."""
        return self.answers / self.seconds if self.seconds > 0 else 0.0

    @property
    def images_per_s(self) -> float:
        """Images in requests with a good answer, per second."""
        return self.requests_per_s * self.batch

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return sum(self.errors.values())

    def latency_ms(self) -> dict[str, float] | None:
        """mean, p50, p90, p95, p99 and max, in milliseconds; None where nothing was answered."""
        return summary_ms(self.latencies)

    def to_json(self) -> dict[str, Any]:
        """All of it but the single latencies, as a JSON object."""
        requests = self.answers + self.failed
        latency = self.latency_ms()
        return {
            "route": self.route,
            "url": self.address,
            "mode": "open" if self.load.clients is None else "closed",
            "clients": self.load.clients,
            "rate": self.load.rate,
            "arrivals": self.load.arrivals,
            "batch": self.batch,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 4),
            "answers": self.answers,
            "requests_per_s": round(self.requests_per_s, 3),
            "images_per_s": round(self.images_per_s, 3),
            "latency_ms": latency and {name: round(value, 3) for name, value in latency.items()},
            "errors": dict(self.errors),
            "error_examples": dict(self.examples),
            "unsent": self.unsent,
            "in_flight_at_end": self.in_flight,
            "generator": {
                "cpu_s": round(self.cpu_seconds, 4),
                "cpu_ms_per_request": round(1000 * self.cpu_seconds / requests, 4) if requests else None,
                "lag_p99_ms": None if self.lag_s is None else round(1000 * self.lag_s, 3),
            },
            "server": self.server and self.server.to_json(),
            "interrupted": self.interrupted,
        }


def summary_ms(latencies: NDArray[np.float64]) -> dict[str, float] | None:
    """Mean, percentiles and maximum of seconds, in milliseconds; None of nothing.

    Percentiles are interpolated between the two nearest values (NumPy's ``linear``, type 7 of Hyndman and
    Fan, 1996).
    """
    if not len(latencies):
        return None
    values = 1000 * np.percentile(latencies, PERCENTILES)
    return {
        "mean": 1000 * float(np.mean(latencies)),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)},
        "max": 1000 * float(np.max(latencies)),
    }
