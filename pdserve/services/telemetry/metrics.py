"""Prometheus metrics, and the current request that they are recorded for.

The request is held in a context variable, so that whatever runs for it, tasks that it starts included, finds
it. A thread of a pool finds it where the context was carried there (``contextvars.copy_context``).

Names of metrics follow Prometheus's conventions (prometheus.io/docs/practices/naming): seconds, totals, units
in the name. Each server has a registry, so that several servers in one process, as tests start them, do not
mix. No label takes what a caller sent.
"""

import asyncio
import contextlib
import copy
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

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
from pdserve.errors import PdserveError

if TYPE_CHECKING:
    from pdserve.services.telemetry.tracing import Span

# From a light model's postprocessing to an engine that counts as hung, in seconds.
_STAGE_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
_REQUEST_SECONDS = _STAGE_SECONDS[3:]
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server. Its methods may be called in any thread and cost a microsecond or two.

    ``by_service``: what `for_service` gives says of which service a number is, in the label ``service``.
    """

    def __init__(self, *, by_service: bool = False) -> None:
        more = ("service",) if by_service else ()
        self._more = ("",) if by_service else ()
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
            "pdserve_images",
            "Images by outcome: ok, gone, or an error's code.",
            ("outcome", *more),
            registry=to,
        )
        self._stages = Histogram(
            "pdserve_stage_seconds",
            "What a request spent in a stage: decode, preprocess, queue, infer (of its batch), postprocess, "
            "search.",
            ("stage", "model", *more),
            buckets=_STAGE_SECONDS,
            registry=to,
        )
        self._batches = Histogram(
            "pdserve_batch_images", "Images per batch.", ("model", *more), buckets=_SIZES, registry=to
        )
        self._busy = Counter(
            "pdserve_engine_busy_seconds", "Time in which engines ran batches.", ("model", *more), registry=to
        )
        self._queue = Gauge("pdserve_queue_images", "Images that wait.", ("model", *more), registry=to)
        self._models = Info("pdserve_model", "What runs.", ("role", *more), registry=to)
        self._rebuilt = Counter(
            "pdserve_engine_rebuilds", "Engines rebuilt, by cause.", ("cause", *more), registry=to
        )
        self._index_size = Gauge(
            "pdserve_index_entries", "Entries of the index.", ("index", *more), registry=to
        )
        self._index_version = Gauge(
            "pdserve_index_version", "Version of the current index.", ("index", *more), registry=to
        )
        self._predicting: set[str] = set()
        to.register(_PaddleServing(self._requests, self._seconds, self._stages, self._predicting))
        # Children by their labels: a dictionary is quicker to ask than the library.
        self._stage_children: dict[tuple[str, str], Histogram] = {}
        self._request_children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def for_service(self, name: str) -> "Metrics":
        """The same metrics for what is recorded of one service."""
        made = copy.copy(self)
        made._more, made._stage_children = (name,), {}
        return made

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
        self._images.labels(outcome, *self._more).inc(count)

    def stage(self, stage: str, seconds: float, model: str = "") -> None:
        """Record the seconds that a request spent in a stage."""
        child = self._stage_children.get((stage, model))
        if child is None:
            child = self._stage_children[stage, model] = self._stages.labels(stage, model, *self._more)
        child.observe(seconds)

    def batch(self, model: str, size: int, seconds: float = 0) -> None:
        """Record a batch: images, and the seconds that it kept the engine busy."""
        self._batches.labels(model, *self._more).observe(size)
        self._busy.labels(model, *self._more).inc(seconds)

    def queue(self, model: str, depth: Callable[[], float]) -> None:
        """Set the function that gives the number of images that wait for this model."""
        self._queue.labels(model, *self._more).set_function(depth)

    def model(self, role: str, name: str, engine: str, device: str, precision: str) -> None:
        """Set the current model of a role."""
        self._models.labels(role, *self._more).info(
            {"model": name, "engine": engine, "device": device, "precision": precision}
        )

    def forget(self, role: str, name: str) -> None:
        """Take a model that runs no more out of `queue` and `model`."""
        for gauge, label in ((self._queue, name), (self._models, role)):
            with contextlib.suppress(KeyError):
                gauge.remove(label, *self._more)

    def rebuilt(self, cause: str) -> None:
        """Count a rebuild of the engines: ``failing``, ``hanging``, ``reload``."""
        self._rebuilt.labels(cause, *self._more).inc()

    def index(self, name: str, entries: int, version: int) -> None:
        """Set the current version of the index."""
        self._index_size.labels(name, *self._more).set(entries)
        self._index_version.labels(name, *self._more).set(version)

    def totals(self) -> dict[tuple[str, str], tuple[int, float]]:
        """How often, and for how many seconds in all, by stage and model; "batch" is a stage, too.

        Where there are several services, those of this one.
        """
        found: dict[tuple[str, str], tuple[int, float]] = {}
        for histogram, fixed in ((self._stages, None), (self._batches, "batch")):
            for sample in (s for family in histogram.collect() for s in family.samples):
                if self._more and sample.labels["service"] != self._more[0]:
                    continue
                key = fixed or sample.labels["stage"], sample.labels["model"]
                count, seconds = found.get(key, (0, 0.0))
                if sample.name.endswith("_count"):
                    found[key] = int(sample.value), seconds
                elif sample.name.endswith("_sum"):
                    found[key] = count, sample.value
        return found

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


Result = TypeVar("Result")

HEADER = "x-request-id"

# Visible ASCII: it goes into headers and into lines of a log as it is.
_SANE = re.compile(r"[!-~]{1,128}")


class RequestContext:
    """One request. ``err_no`` is the pipeline protocol's, None with another protocol.

    ``method`` ("gRPC" for a gRPC call) and ``route`` are those it is counted under, ``predicts`` whether as
    a prediction; ``started``: time.perf_counter() at its start. ``arrived``: when its time began to run, on
    the loop's clock: the time that its caller took to send it is not counted. ``bytes_in``: of a gRPC call's
    message.
    """

    __slots__ = (
        "arrived", "bytes_in", "err_no", "id", "images", "method", "predicts", "route", "span", "started",
    )  # fmt: skip

    def __init__(
        self, sent_id: str | None = None, method: str = "", route: str = "", predicts: bool = False
    ) -> None:
        """``sent_id``: the id that the caller sent; a new one is made where it is not fit for a header."""
        if not sent_id or not _SANE.fullmatch(sent_id):
            sent_id = f"{random.getrandbits(64):016x}"  # it distinguishes requests, and is no secret
        self.id = sent_id
        self.method, self.route, self.predicts = method, route, predicts
        self.started = time.perf_counter()
        self.images = 0
        self.bytes_in: int | None = None
        self.arrived: float | None = None
        self.err_no: int | None = None
        self.span: Span | None = None

    def code(self, sent: str) -> str:
        """The code that the request is counted under: an HTTP status, a gRPC status's name, ``err_no_N``.

        The pipeline protocol reports failures in answers that are 200 and OK to HTTP and gRPC; those
        must not look like successes.
        """
        return f"err_no_{self.err_no}" if self.err_no and sent in ("200", "OK") else sent


current: ContextVar[RequestContext | None] = ContextVar("pdserve_request", default=None)


class Stages:
    """Records the stages and images of requests, in the metrics and in the current request's span.

    Called on the event loop; work in threads is timed there and recorded here.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def record(self, stage: str, seconds: float, model: str = "", ended: float | None = None) -> None:
        """Record the seconds that the current request spent in a stage.

        ``stage``: decode, preprocess, queue, infer, postprocess or search; ``infer`` is its
        batch's. ``ended``: ``time.perf_counter()`` at its end, None for just now.
        """
        self._metrics.stage(stage, seconds, model)
        request = current.get()
        if request is not None and request.span is not None:
            request.span.stage(stage, seconds, model, 0.0 if ended is None else time.perf_counter() - ended)

    async def answers(self, images: int, work: Awaitable[list[Result]]) -> list[Result]:
        """Do a request's ``work``, and count its images by outcome.

        An answer that is an error counts as that error's code; where the request fails as a whole, all
        of its images count so. Those of a caller that went away are ``gone``.
        """
        if request := current.get():
            request.images += images
        try:
            answers = await work
        except PdserveError as error:
            self._metrics.images(error.code, images)
            raise
        except asyncio.CancelledError:
            self._metrics.images("gone", images)
            raise
        except Exception:
            self._metrics.images("error", images)
            raise
        for answer in answers:
            self._metrics.images(answer.code if isinstance(answer, PdserveError) else "ok")
        return answers
