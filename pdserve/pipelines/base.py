"""What every pipeline is: images in, answers out. It knows engines and an index, and nothing of sockets.

A pipeline says in `Pipeline.answer` which steps an image takes; how a step is run is up to the `Steps` that
it is given: a server's, with threads and batches across requests, or `Direct`, one step after the other.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from pdserve.engines import Engine
from pdserve.errors import ImageError, PdserveError
from pdserve.formats.serving_model import ServingModel
from pdserve.pipelines.loading import models_signature
from pdserve.pipelines.parameters import USUAL, Parameters
from pdserve.settings import ModelSettings
from pdserve.vision.decode import decode
from pdserve.vision.types import Image8, Tensor

if TYPE_CHECKING:
    from pdserve.index.search import LoadedIndex
    from pdserve.pipelines.embedder import Embedder

Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PipelineModel:
    """A model of a pipeline: its files, its engines (one per device), its settings.

    ``infer(items, engine=N)`` runs a batch of items on the N-th engine and returns as many results.
    ``role``: its part in the metrics (classifier, detector, embedder).

    For callers of the model itself: ``prepare(image)`` makes of H×W×3 uint8 RGB what ``infer`` takes of one
    image, a tensor C×H×W or its feeds by alias. ``size``: (height, width) of that, None where it depends on
    the image. ``names``: of classes by their ids, None where it has none. ``read(scores, top_k)``: labels of
    a row of the fetch ``scores``; None where it gives none. ``by_row``: its fetches have a row for each row
    of its feeds, so that rows of several callers may run together.
    """

    role: str
    model: ServingModel
    engines: tuple[Engine, ...]
    settings: ModelSettings
    infer: Callable[..., Sequence[Any]]
    prepare: Callable[[Image8], Any] | None = None
    size: tuple[int, int] | None = None
    names: Sequence[str] | None = None
    scores: str = ""
    read: Callable[[Any, int | None], Sequence[Any]] | None = None
    by_row: bool = True

    @property
    def name(self) -> str:
        return self.model.name


class Steps(Protocol):
    """How a pipeline's steps are run, and what the request asks for (``parameters``)."""

    @property
    def parameters(self) -> Parameters: ...

    async def decoded(
        self, data: bytes | PdserveError, function: Callable[[Image8, float], Result]
    ) -> Result | PdserveError:
        """Decode an image file and run a function on it, away from the event loop.

        ``function`` is given H×W×3 uint8 RGB and the seconds that decoding took; it is not to keep the
        pixels. Returns what it returns, or what is wrong with the image. Raises DeadlineError and whatever
        else concerns the whole request.
        """

    def pixels(self, data: bytes | PdserveError) -> AbstractAsyncContextManager[Image8 | PdserveError]:
        """``async with steps.pixels(data) as image``: as `decoded`, for pixels that live as long as that."""
        raise NotImplementedError

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function away from the event loop. Raises DeadlineError, and what the function raises."""

    async def infer(self, role: str, items: Sequence[Any]) -> list[Any]:
        """Run items through a model: a result for each, in order, or the EngineError of that item."""

    def record(self, stage: str, seconds: float, model: str = "", ended: float | None = None) -> None:
        """A stage of this request took so long; ``ended`` on time.perf_counter's clock, None for now."""


class Pipeline(ABC, Generic[Answer]):
    """Models loaded and warm.

    ``loaded``: the signature of the models' files when they were loaded. ``max_pixels``: the limit of an
    image. ``index``: the version of the
    index that is searched, None for a pipeline without one; a newer one may be put in its place at any
    time. ``embedder``: what `embed` embeds with, and what made that index; None for a pipeline without one.
    """

    loaded: Hashable
    max_pixels: int
    index: "LoadedIndex | None" = None
    embedder: "Embedder | None" = None

    @property
    def working_bytes(self) -> int:
        """What preprocessing holds beside an image, in bytes for each of its pixels; 0 where it is small."""
        return 0

    @property
    @abstractmethod
    def models(self) -> Mapping[str, PipelineModel]:
        """The models by role, in the order of an image's way."""

    @abstractmethod
    async def answer(
        self, images: Sequence[bytes | PdserveError], steps: Steps, top_k: int | None = None
    ) -> list[Answer | PdserveError]:
        """Answer image files in order; a bad one has its error in its place."""

    async def embed(
        self, images: Sequence[bytes | PdserveError], steps: Steps
    ) -> list[Tensor | PdserveError]:
        """Whole image files -> vectors in order, each (dimension,) float32 of length 1 (L2), or its error.

        Nothing is detected. Raises NotImplementedError for a pipeline without an ``embedder``.
        """
        raise NotImplementedError("a pipeline without an embedder")

    def decode(self, data: bytes) -> Image8:
        """An image file's bytes -> H×W×3 uint8 RGB. Raises ImageError."""
        return decode(data, self.max_pixels)

    @abstractmethod
    def fields(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """All images' answers as keys and values of Paddle Serving's pipeline protocol."""

    def load_index(self) -> "LoadedIndex":
        """Load the index that is published now. Raises IndexFolderError, OtherEmbedderError."""
        raise NotImplementedError("a pipeline without an index")

    def signature(self) -> Hashable:
        """The signature of the models' files as they are now."""
        return models_signature(each.model for each in self.models.values())

    @abstractmethod
    def check(self) -> None:
        """Run every engine once. Raises EngineError; where outputs do not fit, ModelError, SettingsError."""

    def checked(self) -> Self:
        """This pipeline, after `check`; where that raises, its engines are freed."""
        try:
            self.check()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Free the engines."""
        for each in self.models.values():
            for engine in each.engines:
                engine.close()

    def predict(self, images: Sequence[bytes], top_k: int | None = None) -> list[Answer | PdserveError]:
        """Answer image files in this thread, one after the other; see `answer`."""
        answers: list[Answer | PdserveError] = []
        for image in images:
            way = self.answer([image], Direct(self.models, self.decode), top_k)
            try:
                way.send(None)  # nothing in it waits for anything
            except StopIteration as done:
                answers += done.value
            except PdserveError as error:
                answers.append(error)
        return answers


class Direct:
    """Runs steps at once, in the calling thread, on each model's first engine."""

    parameters = USUAL

    def __init__(
        self, models: Mapping[str, PipelineModel], decode: Callable[[bytes], Image8] = decode
    ) -> None:
        self._models = models
        self._decode = decode

    async def decoded(
        self, data: bytes | PdserveError, function: Callable[[Image8, float], Result]
    ) -> Result | PdserveError:
        started = time.perf_counter()
        image = self._try_decode(data)
        if isinstance(image, PdserveError):
            return image
        try:
            return function(image, time.perf_counter() - started)
        except ImageError as error:
            return error

    @contextlib.asynccontextmanager
    async def pixels(self, data: bytes | PdserveError) -> AsyncIterator[Image8 | PdserveError]:
        yield self._try_decode(data)

    def _try_decode(self, data: bytes | PdserveError) -> Image8 | PdserveError:
        if isinstance(data, PdserveError):
            return data
        try:
            return self._decode(data)
        except ImageError as error:
            return error

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return function(*arguments)

    async def infer(self, role: str, items: Sequence[Any]) -> list[Any]:
        return list(self._models[role].infer(items)) if items else []

    def record(self, stage: str, seconds: float, model: str = "", ended: float | None = None) -> None:
        pass


async def together(ways: Sequence[Awaitable[Result]]) -> list[Result]:
    """The results of several ways, in order. Where one fails for all the others are cancelled."""
    if len(ways) == 1:  # a gather would make a task of it
        return [await ways[0]]
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Clock:
    """Laps in milliseconds by name; laps of one name add up. ``since``: when the last one was closed."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.since = time.perf_counter()

    def lap(self, name: str) -> float:
        """Close a lap; its seconds."""
        now = time.perf_counter()
        seconds = now - self.since
        self.laps[name] = round(self.laps.get(name, 0) + seconds * 1000, 3)
        self.since = now
        return seconds


def record_laps(steps: Steps, clock: Clock, decoder: str, model: str) -> None:
    """Record decoding and preprocessing, which one piece of work has done; ``decoder``: on whose account."""
    decode_s, preprocess_s = clock.laps["decode"] / 1000, clock.laps["preprocess"] / 1000
    steps.record("decode", decode_s, decoder, clock.since - preprocess_s)
    steps.record("preprocess", preprocess_s, model, clock.since)
