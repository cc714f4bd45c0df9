"""Watch files for a newly published version: of models, and of the index, which is put in place here."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Any

from pdserve.errors import IndexFolderError, OtherEmbedderError, PdserveError
from pdserve.index.search import LoadedIndex, changed, signatures
from pdserve.pipelines.base import Pipeline
from pdserve.services.telemetry.metrics import Metrics

log = logging.getLogger("pdserve")

# How often the index's folder is looked at, in seconds.
INTERVAL_S = 0.5


async def watch(
    what: str,
    look: Callable[[], Hashable],
    active: Callable[[], Hashable],
    act: Callable[[], Awaitable[None]],
    interval_s: float,
    settle: bool = False,
) -> None:
    """Call ``act`` when ``look``, called in a thread, returns something other than ``active``; never ends.

    With ``settle`` once for each version, when two looks in a row have returned the same; without, after
    every look. An OSError of ``look`` (too many open files, say) is logged once, and the watch goes on.
    """
    before: Hashable = active()
    done: Hashable = object()
    logged = ""
    while True:
        await asyncio.sleep(interval_s)
        try:
            now = await asyncio.to_thread(look)
        except OSError as error:
            if str(error) != logged:
                log.error("%s cannot be looked at, what runs goes on: %s", what, error)
            logged = str(error)
            continue
        logged = ""
        if now != active() and (not settle or (now == before and now != done)):
            await act()
            done = now
        before = now


class IndexWatch:
    """Watches the folder of a pipeline's index, and puts a newer version into ``pipeline.index``.

    A request that has taken the older version goes on with it. ``on_other_embedder`` is called when an index
    of another embedder was published.
    """

    def __init__(
        self, pipeline: Pipeline[Any], metrics: Metrics, on_other_embedder: Callable[[], None]
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._on_other_embedder = on_other_embedder
        self._task: asyncio.Task[None] | None = None
        self._refused: object = None
        self._refreshing = asyncio.Lock()
        self._looked_at: object = None

    @property
    def loaded(self) -> LoadedIndex:
        """The active version."""
        index = self._pipeline.index
        if index is None:
            raise RuntimeError("this pipeline has no index")
        return index

    @property
    def folder(self) -> Path:
        return self.loaded.folder

    def start(self) -> None:
        """Watch the folder, on the running event loop."""
        self._report()
        self._task = asyncio.create_task(
            watch("the index", self._look, lambda: False, self.refresh, INTERVAL_S)
        )

    async def refresh(self) -> None:
        """Load the published version if it is another. One that cannot be used is logged once and left.

        One at a time: else a version that loads slowly could take the place of a newer one.
        """
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            if await asyncio.to_thread(self._changed):
                self._pipeline.index = await asyncio.to_thread(self._pipeline.load_index)
                self._report()
                log.info("index version %d is active: %d entries", self.loaded.version, self.loaded.count)
            self._refused = None
        except (PdserveError, OSError) as error:
            if str(error) != self._refused:
                log.error("the new index is not used, version %d stays: %s", self.loaded.version, error)
                self._refused = str(error)
                if isinstance(error, OtherEmbedderError):
                    self._on_other_embedder()

    def _look(self) -> bool:
        """Whether a file is another than when `refresh` looked; what it is, is for that to find out."""
        return signatures(self.folder) != self._looked_at

    def _changed(self) -> bool:
        found = signatures(self.folder)
        if found == self._looked_at:
            return False
        try:
            newer = changed(self.folder, self.loaded)
        except FileNotFoundError:  # it is being replaced
            return False
        except IndexFolderError:
            self._looked_at = found  # a look at a file that another program wrote reads the whole of it
            raise
        self._looked_at = None if newer else found
        return newer

    def _report(self) -> None:
        self._metrics.index(self.folder.name, self.loaded.count, self.loaded.version)

    async def close(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
