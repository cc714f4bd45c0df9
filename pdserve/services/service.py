"""A running service: a pipeline with a queue before its engines, and threads for the work around them.

Both doors, HTTP and gRPC, hand their images to `ImageService.answer`.
"""

import asyncio
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from pdserve.errors import BodyTooLargeError, PdserveError
from pdserve.services.batching import Batcher
from pdserve.services.classification import ClassificationPipeline, Tensor
from pdserve.settings import ModelSettings, ServerSettings
from pdserve.vision.scores import Label

# An image's labels, or why it has none.
Answer: TypeAlias = "list[Label] | PdserveError"


class ImageService:
    """The classification service.

    ``kind`` is its name in pdserve's own routes, ``names`` those it answers to in the pipeline
    protocol. It is ``ready`` between start and close. ``one_label``: an image's first label says it all.
    """

    kind = "classification"

    def __init__(
        self, pipeline: ClassificationPipeline, server: ServerSettings, model: ModelSettings
    ) -> None:
        self.names = frozenset({server.name, self.kind})
        self.limits = server
        self.ready = False
        self._pipeline = pipeline
        # Attribute models answer with several labels that belong together, others with alternatives.
        self.one_label = pipeline.description.postprocess.kind in ("Topk", "ThreshOutput")
        # Decoding and resizing release the GIL, so one thread a core keeps the engines fed.
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pdserve-image")
        self._batcher: Batcher[Tensor, Tensor] = Batcher(
            [
                functools.partial(pipeline.infer, engine=i)
                for i in range(len(pipeline.engines))
                for _ in range(model.instances)
            ],
            max_batch_size=model.max_batch_size,
            max_queue_delay_ms=model.max_queue_delay_ms,
            max_queue_size=model.max_queue_size,
            timeout_ms=model.timeout_ms,
        )

    def start(self) -> None:
        """Take requests from now on; called on the running event loop."""
        self._batcher.start()
        self.ready = True

    async def answer(self, images: Sequence[bytes | PdserveError], top_k: int | None = None) -> list[Answer]:
        """Classify the images of one request, in order; they run as one batch.

        An image that the door could not even get at comes as its error and stays in its place, as one
        that cannot be decoded does. Raises BodyTooLargeError for more than ``max_images``, and what
        the queue and the engine raise for the request as a whole.
        """
        if len(images) > self.limits.max_images:
            raise BodyTooLargeError(
                f"The request has {len(images)} images, more than the limit of {self.limits.max_images}; "
                "send several requests."
            )
        prepared = await asyncio.gather(*(self._prepare(image) for image in images))
        rows = iter(await self._batcher.submit([t for t in prepared if not isinstance(t, PdserveError)]))
        return [
            each if isinstance(each, PdserveError) else self._pipeline.read(next(rows), top_k)
            for each in prepared
        ]

    async def _prepare(self, image: bytes | PdserveError) -> "Tensor | PdserveError":
        if isinstance(image, PdserveError):
            return image
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._pipeline.prepare, image)
        except PdserveError as error:
            return error

    async def close(self) -> None:
        """Finish what is queued and free the engines."""
        self.ready = False
        await self._batcher.close()
        self._pool.shutdown()
        self._pipeline.close()
