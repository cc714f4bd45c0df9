"""The current request and its stages: what its log lines, metrics and spans share, over HTTP and gRPC.

It is held in a context variable, so that whatever runs for a request, tasks that it starts included,
finds it. A thread of a pool finds it where the context was carried there (``contextvars.copy_context``).
"""

import asyncio
import random
import re
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from pdserve.errors import PdserveError
from pdserve.services.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from pdserve.services.telemetry.tracing import Span

Result = TypeVar("Result")

HEADER = "x-request-id"

# Visible ASCII: it goes into headers and into lines of a log as it is.
_SANE = re.compile(r"[!-~]{1,128}")


class RequestContext:
    """One request. ``err_no`` is the pipeline protocol's, None with another protocol.

    ``method`` ("gRPC" for a gRPC call) and ``route`` are those it is counted under, ``predicts`` whether as
    a prediction; ``started``: time.perf_counter() at its start.
    """

    __slots__ = ("err_no", "id", "images", "method", "predicts", "route", "span", "started")

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
