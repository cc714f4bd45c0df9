"""The index of a running service: a newly published version takes the old one's place between two images."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from pdserve.errors import PdserveError
from pdserve.index import faiss_gpu
from pdserve.index.errors import OtherEmbedderError
from pdserve.index.search import LoadedIndex, changed, load
from pdserve.pipelines.embedder import Embedder
from pdserve.services.telemetry.metrics import Metrics

log = logging.getLogger("pdserve")

# How often the folder is looked at, in seconds.
INTERVAL_S = 0.5


class LiveIndex:
    """``loaded`` is the version in force; who took it may go on using it when another takes its place.

    ``gpu`` is the number of the GPU to search on, where faiss can; None for the CPU. ``on_misfit`` is
    called when an index was published that another embedder made: there may be a model to go with it.
    """

    def __init__(
        self,
        loaded: LoadedIndex,
        embedder: Embedder,
        gpu: int | None,
        metrics: Metrics,
        on_misfit: Callable[[], None],
    ) -> None:
        self.folder = loaded.folder
        self._embedder = embedder
        self._gpu = gpu
        self._metrics = metrics
        self._on_misfit = on_misfit
        self.loaded = self._placed(loaded)
        self._task: asyncio.Task[None] | None = None
        self._refused: object = None

    def start(self) -> None:
        """Watch the folder, on the running event loop."""
        self._tell()
        self._task = asyncio.create_task(self._watch())

    async def refresh(self) -> None:
        """Load what is published now, if that is not loaded. A broken one is said once and passed by."""
        try:
            if await asyncio.to_thread(changed, self.folder, self.loaded):
                newer = await asyncio.to_thread(load, self.folder)
                newer.require(self._embedder)
                self.loaded = await asyncio.to_thread(self._placed, newer)
                self._tell()
                log.info("index version %d in force: %d entries", newer.version, newer.count)
            self._refused = None
        except (PdserveError, OSError) as error:
            if str(error) != self._refused:
                log.error(
                    "the published index is not taken, version %d stays: %s", self.loaded.version, error
                )
                self._refused = str(error)
                if isinstance(error, OtherEmbedderError):
                    self._on_misfit()

    def _tell(self) -> None:
        self._metrics.index(self.folder.name, self.loaded.count, self.loaded.version)

    def _placed(self, loaded: LoadedIndex) -> LoadedIndex:
        return loaded if self._gpu is None else faiss_gpu.moved(loaded, self._gpu)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.refresh()

    async def close(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
