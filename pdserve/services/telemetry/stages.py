"""What a request spent its time on, for the numbers and for its trace alike."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from pdserve.errors import PdserveError
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.request import current

Result = TypeVar("Result")


class Stages:
    """Where a service tells of its stages and its images.

    Called on the event loop; work in threads is measured there and told of here. Outside a request only
    the numbers hear of it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def record(self, stage: str, seconds: float, model: str = "", ended: float | None = None) -> None:
        """A stage of the request that runs took so long.

        ``stage``: decode, preprocess, queue, infer, postprocess or search; ``infer`` is that of the batch
        the request was in. ``ended``: ``time.perf_counter()`` at its end, None for just now.
        """
        self._metrics.stage(stage, seconds, model)
        call = current.get()
        if call is not None and call.span is not None:
            call.span.stage(stage, seconds, model, 0.0 if ended is None else time.perf_counter() - ended)

    async def answers(self, images: int, work: Awaitable[list[Result]]) -> list[Result]:
        """Do a request's ``work``, and count its images by what became of them.

        An answer that is an error counts as that error's code; where the request fails as a whole, all
        of its images count so. Those of a caller that went away are ``gone``.
        """
        if call := current.get():
            call.images += images
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
