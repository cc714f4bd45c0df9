"""Prometheus metrics.

Names follow Prometheus's conventions (prometheus.io/docs/practices/naming): seconds, totals, units in the
name. Each server has a registry, so that several servers in one process, as tests start them, do not mix.
No label takes what a caller sent.
"""

from collections.abc import Callable, Collection, Iterable

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
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from pdserve import __version__

# From a light model's postprocessing to an engine that counts as hung, in seconds.
_STAGE_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
_REQUEST_SECONDS = _STAGE_SECONDS[3:]
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server. Its methods may be called in any thread and cost a microsecond or two."""

    def __init__(self) -> None:
        self._registry = to = CollectorRegistry()
        ProcessCollector(registry=to)  # gives nothing where there is no /proc
        PlatformCollector(registry=to)
        Info("pdserve", "The server.", registry=to).info({"version": __version__})
        self._requests = Counter(
            "pdserve_requests",
            "Requests by route and code: an HTTP status (499: the caller went away), a gRPC status's name, "
            "or err_no_N where those say success and the pipeline protocol's answer does not.",
            ("route", "code"),
            registry=to,
        )
        self._seconds = Histogram(
            "pdserve_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_REQUEST_SECONDS,
            registry=to,
        )
        self._images = Counter(
            "pdserve_images", "Images by outcome: ok, gone, or an error's code.", ("outcome",), registry=to
        )
        self._stages = Histogram(
            "pdserve_stage_seconds",
            "What a request spent in a stage: decode, preprocess, queue, infer (of its batch), postprocess, "
            "search.",
            ("stage", "model"),
            buckets=_STAGE_SECONDS,
            registry=to,
        )
        self._batches = Histogram(
            "pdserve_batch_images", "Images per batch.", ("model",), buckets=_SIZES, registry=to
        )
        self._busy = Counter(
            "pdserve_engine_busy_seconds", "Time in which engines ran batches.", ("model",), registry=to
        )
        self._queue = Gauge("pdserve_queue_images", "Images that wait.", ("model",), registry=to)
        self._models = Info("pdserve_model", "What runs.", ("role",), registry=to)
        self._rebuilt = Counter(
            "pdserve_engine_rebuilds", "Engines rebuilt, by cause.", ("cause",), registry=to
        )
        self._index_size = Gauge("pdserve_index_entries", "Entries of the index.", ("index",), registry=to)
        self._index_version = Gauge(
            "pdserve_index_version", "Version of the current index.", ("index",), registry=to
        )
        self._predicting: set[str] = set()
        to.register(_PaddleServing(self._requests, self._seconds, self._stages, self._predicting))
        # Children by their labels: a dictionary is quicker to ask than the library.
        self._stage_children: dict[tuple[str, str], Histogram] = {}
        self._request_children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def request(self, route: str, code: str, seconds: float, *, predicts: bool = False) -> None:
        """Count a request. ``code``: see `RequestContext.code`. ``predicts``: it is one for a prediction."""
        children = self._request_children.get((route, code))
        if children is None:
            if predicts:
                self._predicting.add(route)
            children = self._requests.labels(route, code), self._seconds.labels(route)
            self._request_children[route, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def images(self, outcome: str, count: int = 1) -> None:
        """Count images: ``ok``, ``gone`` (the caller went away) or an error's code."""
        self._images.labels(outcome).inc(count)

    def stage(self, stage: str, seconds: float, model: str = "") -> None:
        """Record the seconds that a request spent in a stage."""
        child = self._stage_children.get((stage, model))
        if child is None:
            child = self._stage_children[stage, model] = self._stages.labels(stage, model)
        child.observe(seconds)

    def batch(self, model: str, size: int, seconds: float = 0) -> None:
        """Record a batch: images, and the seconds that it kept the engine busy."""
        self._batches.labels(model).observe(size)
        self._busy.labels(model).inc(seconds)

    def queue(self, model: str, depth: Callable[[], float]) -> None:
        """Set the function that gives the number of images that wait for this model."""
        self._queue.labels(model).set_function(depth)

    def model(self, role: str, name: str, engine: str, device: str, precision: str) -> None:
        """Set the current model of a role."""
        self._models.labels(role).info(
            {"model": name, "engine": engine, "device": device, "precision": precision}
        )

    def rebuilt(self, cause: str) -> None:
        """Count a rebuild of the engines: ``failing``, ``hanging``, ``reload``."""
        self._rebuilt.labels(cause).inc()

    def index(self, name: str, entries: int, version: int) -> None:
        """Set the current version of the index."""
        self._index_size.labels(name).set(entries)
        self._index_version.labels(name).set(version)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, in the format that an Accept header asks for, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


class _PaddleServing:
    """The counters that Paddle Serving documents for ``dag.enable_prometheus``, under its names.

    Summed from ours at each scrape: requests for predictions, and the engine runs that they waited for.
    """

    def __init__(
        self, requests: Counter, seconds: Histogram, stages: Histogram, predicting: Collection[str]
    ) -> None:
        self._sources = requests, seconds, stages
        self._predicting = predicting

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        success = failure = micros = runs = run_micros = 0.0
        for sample in (s for source in self._sources for family in source.collect() for s in family.samples):
            labels, value = sample.labels, sample.value
            if sample.name == "pdserve_requests_total" and labels["route"] in self._predicting:
                if labels["code"] in ("200", "OK"):
                    success += value
                else:
                    failure += value
            elif sample.name == "pdserve_request_seconds_sum" and labels["route"] in self._predicting:
                micros += value * 1e6
            elif sample.name == "pdserve_stage_seconds_count" and labels["stage"] == "infer":
                runs += value
            elif sample.name == "pdserve_stage_seconds_sum" and labels["stage"] == "infer":
                run_micros += value * 1e6
        for name, text, value in (
            ("pd_query_request_success", "Requests that were answered.", success),
            ("pd_query_request_failure", "Requests that failed.", failure),
            ("pd_query_request_duration_us", "Time in requests.", micros),
            ("pd_inference_count", "Runs of a model that requests waited for.", runs),
            ("pd_inference_duration_us", "Time in those runs.", run_micros),
        ):
            yield CounterMetricFamily(name, text, value=value)
