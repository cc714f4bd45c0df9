"""What a server tells of itself as numbers, in Prometheus's form, at ``/metrics``.

Names follow Prometheus's conventions (prometheus.io/docs/practices/naming): seconds, totals, units in the
name. Everything is in a registry of the server's own, so that several servers in one process, as tests
start them, do not mix. No label takes what a caller sent.
"""

from collections.abc import Callable, Iterable

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
    """The numbers of one server. Its methods may be called in any thread and cost a microsecond or two."""

    def __init__(self) -> None:
        self._registry = to = CollectorRegistry()
        ProcessCollector(registry=to)  # tells nothing where there is no /proc
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
            "pdserve_engine_rebuilds", "Engines built anew, by cause.", ("cause",), registry=to
        )
        self._index_size = Gauge("pdserve_index_entries", "Entries of the index.", ("index",), registry=to)
        self._index_version = Gauge(
            "pdserve_index_version", "Version of the index in force.", ("index",), registry=to
        )
        to.register(_PaddleServing(self._requests, self._seconds, self._stages))
        # Children by their labels: a dictionary is quicker to ask than the library.
        self._stage_children: dict[tuple[str, str], Histogram] = {}
        self._request_children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def request(self, route: str, code: str, seconds: float) -> None:
        """A request was answered; ``code`` is what `call.Call.code` makes of its outcome."""
        children = self._request_children.get((route, code))
        if children is None:
            children = self._requests.labels(route, code), self._seconds.labels(route)
            self._request_children[route, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def images(self, outcome: str, count: int = 1) -> None:
        """Images were answered: ``ok``, ``gone`` (nobody waited any more) or an error's code."""
        self._images.labels(outcome).inc(count)

    def stage(self, stage: str, seconds: float, model: str = "") -> None:
        """A request spent so long in a stage."""
        child = self._stage_children.get((stage, model))
        if child is None:
            child = self._stage_children[stage, model] = self._stages.labels(stage, model)
        child.observe(seconds)

    def batch(self, model: str, size: int, seconds: float = 0) -> None:
        """A batch went through an engine, and kept it busy so long."""
        self._batches.labels(model).observe(size)
        self._busy.labels(model).inc(seconds)

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


class _PaddleServing:
    """The counters that Paddle Serving documents for ``dag.enable_prometheus``, under its names.

    Summed from ours when asked: requests for predictions, and the runs of engines that they waited for.
    """

    def __init__(self, requests: Counter, seconds: Histogram, stages: Histogram) -> None:
        self._sources = requests, seconds, stages

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        success = failure = micros = runs = run_micros = 0.0
        for sample in (s for source in self._sources for family in source.collect() for s in family.samples):
            labels, value = sample.labels, sample.value
            if sample.name == "pdserve_requests_total" and _predicts(labels["route"]):
                if labels["code"] in ("200", "OK"):
                    success += value
                else:
                    failure += value
            elif sample.name == "pdserve_request_seconds_sum" and _predicts(labels["route"]):
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


def _predicts(route: str) -> bool:
    return route in ("/{name}/{method}", "inference", "/v1/classification", "/v1/recognition")
