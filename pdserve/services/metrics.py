"""What a server tells of itself as numbers, in Prometheus's form, at ``/metrics``.

Names follow Prometheus's conventions (prometheus.io/docs/practices/naming): seconds, totals, units in the
name. Everything is in a registry of the server's own, so that several servers in one process, as tests
start them, do not mix.
"""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

# From a light model's postprocessing to a heavy one's queue, in seconds.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        to = self._registry
        self._requests = Counter(
            "pdserve_requests", "Requests answered, by route and code.", ("route", "code"), registry=to
        )
        self._seconds = Histogram(
            "pdserve_request_seconds",
            "From the first byte of a request to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=to,
        )
        self._images = Counter("pdserve_images", "Images answered, by outcome.", ("outcome",), registry=to)
        self._stages = Histogram(
            "pdserve_stage_seconds",
            "Duration of a stage: decode, preprocess, queue, infer, postprocess, search.",
            ("stage", "model"),
            buckets=_SECONDS,
            registry=to,
        )
        self._batches = Histogram(
            "pdserve_batch_images", "Images per batch.", ("model",), buckets=_SIZES, registry=to
        )
        self._queue = Gauge("pdserve_queue_images", "Images that wait.", ("model",), registry=to)
        self._models = Info("pdserve_model", "What runs.", ("role",), registry=to)
        self._rebuilt = Counter(
            "pdserve_engine_rebuilds", "Engines built anew, by cause.", ("cause",), registry=to
        )
        self._index_size = Gauge("pdserve_index_entries", "Entries of the index.", ("index",), registry=to)
        self._index_version = Gauge(
            "pdserve_index_version", "Version of the index in force.", ("index",), registry=to
        )

    def request(self, route: str, code: str, seconds: float) -> None:
        """A request was answered; ``code`` is the HTTP status or the gRPC status's name."""
        self._requests.labels(route, code).inc()
        self._seconds.labels(route).observe(seconds)

    def image(self, outcome: str) -> None:
        """An image was answered: ``ok``, or its error's code."""
        self._images.labels(outcome).inc()

    def stage(self, stage: str, seconds: float, model: str = "") -> None:
        """A stage of an image, or of a batch in the engine, took so long."""
        self._stages.labels(stage, model).observe(seconds)

    def batch(self, model: str, size: int) -> None:
        """A batch went into an engine."""
        self._batches.labels(model).observe(size)

    def queue(self, model: str, depth: Callable[[], float]) -> None:
        """From now on, ``depth`` says how many images wait for this model."""
        self._queue.labels(model).set_function(depth)

    def model(self, role: str, name: str, engine: str, device: str, precision: str) -> None:
        """This model runs in this role from now on."""
        self._models.labels(role).info(
            {"model": name, "engine": engine, "device": device, "precision": precision}
        )

    def rebuilt(self, cause: str) -> None:
        """The engines were built anew: ``failing``, ``hanging``, ``reload``."""
        self._rebuilt.labels(cause).inc()

    def index(self, name: str, entries: int, version: int) -> None:
        """This version of the index is in force from now on."""
        self._index_size.labels(name).set(entries)
        self._index_version.labels(name).set(version)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All numbers, in the form that an Accept header asks for, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type
