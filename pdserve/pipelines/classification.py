"""The classification pipeline: image files in, labels out. It knows engines, and nothing of sockets."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pdserve.answers import Label
from pdserve.engines import Engine
from pdserve.engines.base import as_batch
from pdserve.errors import AliasError, EngineError, ModelError, PdserveError, SettingsError
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.models.find import find_serving_model
from pdserve.models.home import Home
from pdserve.pipelines.loading import load_engines, stamp
from pdserve.pipelines.model_config import Description, describe
from pdserve.settings import ServiceSettings
from pdserve.vision.decode import MAX_PIXELS, decode
from pdserve.vision.types import Image8, Tensor

log = logging.getLogger("pdserve")


# The aliases that the guide gives a classifier, and that a caller of the model may count on.
FEED = "image"
FETCH = "prediction"


@dataclass(frozen=True)
class ClassificationPipeline:
    """Three stages, each its own method, so that a server can put queues between them.

    ``prepare`` and ``read`` may run in any number of threads; ``infer`` as the engine allows.
    """

    model: ServingModel
    engines: tuple[Engine, ...]
    description: Description
    fetch: str = FETCH
    max_pixels: int = MAX_PIXELS
    stamp: Hashable = None  # of the model's files, when they were loaded

    def decode(self, data: bytes) -> Image8:
        """An image file's bytes -> H×W×3 uint8 RGB. Raises ImageError."""
        return decode(data, self.max_pixels)

    def preprocess(self, image: Image8) -> Tensor:
        """H×W×3 uint8 RGB -> C×H×W float32. Raises ImageError."""
        return self.description.chain(image)

    def prepare(self, data: bytes) -> Tensor:
        """An image file's bytes -> C×H×W float32. Raises ImageError."""
        return self.preprocess(self.decode(data))

    def infer(self, tensors: Sequence[Tensor], engine: int = 0) -> list[Tensor]:
        """Tensors -> a row of scores each, (classes,) float32, in order.

        Tensors of one shape run as one batch. Raises EngineError.
        """
        rows: list[Tensor | None] = [None] * len(tensors)
        for shape in dict.fromkeys(t.shape for t in tensors):
            among = [i for i, t in enumerate(tensors) if t.shape == shape]
            scores = self.engines[engine].run({FEED: as_batch([tensors[i] for i in among])})[self.fetch]
            if scores.ndim != 2 or len(scores) != len(among):
                raise EngineError(
                    f"The model's {self.fetch!r} has the shape {scores.shape}, not (images, classes)."
                )
            if not np.isfinite(scores).all():
                raise EngineError(f"The model's {self.fetch!r} has values that are no numbers.")
            for i, row in zip(among, scores, strict=True):
                rows[i] = row
        return [row for row in rows if row is not None]

    def read(self, scores: Tensor, top_k: int | None = None) -> list[Label]:
        """A row of scores -> labels, best first."""
        return self.description.postprocess.read(scores, top_k)

    def predict(self, images: Sequence[bytes], top_k: int | None = None) -> list[list[Label] | PdserveError]:
        """All three stages for several image files; a bad image gets its error in its place."""
        out: list[list[Label] | PdserveError] = []
        good: list[int] = []
        tensors: list[Tensor] = []
        for i, data in enumerate(images):
            try:
                tensors.append(self.prepare(data))
                good.append(i)
                out.append([])
            except PdserveError as error:
                out.append(error)
        for i, row in zip(good, self.infer(tensors), strict=True):
            out[i] = self.read(row, top_k)
        return out

    def check(self) -> None:
        """Run every engine once and see that what comes out fits. Raises ModelError, SettingsError."""
        size = self.description.chain.size or (224, 224)
        for i in range(len(self.engines)):
            rows = self.infer([np.zeros((3, *size), np.float32)], i)
            width, wanted = len(rows[0]), self.description.postprocess.width
            if wanted is not None and width != wanted:
                names = self.description.names
                what = (
                    f"{len(names)} labels"
                    if names
                    else f"{self.description.postprocess.kind} for {wanted} outputs"
                )
                raise SettingsError(
                    f"The model has {width} outputs and there are {what}; give the right --labels."
                )

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


def check_aliases(model: ServingModel, fetch: str = FETCH) -> None:
    """See that a serving model has the feed and fetch of this service, before anything is loaded.

    Raises AliasError with the command that mends it.
    """
    config = model.config
    feeds, fetches = [v.alias for v in config.feeds], [v.alias for v in config.fetches]
    if len(feeds) != 1:
        raise AliasError(f"{model.path} has {len(feeds)} feeds ({', '.join(feeds)}); a classifier has one.")
    wrong = [f"--feed {feeds[0]}={FEED}"] if feeds != [FEED] else []
    if fetch not in fetches:
        if len(fetches) != 1:
            raise AliasError(f"{model.path} has no fetch {fetch!r}; its fetches are {', '.join(fetches)}.")
        wrong.append(f"--fetch {fetches[0]}={fetch}")
    if wrong:
        raise AliasError(
            f"{model.path} has the feed {feeds[0]!r} and the fetches {', '.join(map(repr, fetches))} where "
            f"classification needs {FEED!r} and {fetch!r}; "
            f"type `pdserve alias {model.path} {' '.join(wrong)}`."
        )


def check_size(model: ServingModel, description: Description) -> None:
    """See that the preprocessing gives the size that the model's feed declares. Raises ModelError."""
    shape, size = model.config.feeds[0].shape, description.chain.size
    if len(shape) == 3 and size and shape[1:] != size:
        raise ModelError(
            f"{model.name} takes images of {shape[2]}×{shape[1]} and the preprocessing gives "
            f"{size[1]}×{size[0]}; set --resize-short and --crop, or --resize {shape[2]},{shape[1]}."
        )


def open_classification(settings: ServiceSettings, home: Home) -> ClassificationPipeline:
    """Find, check, load and warm up a classifier.

    Raises ModelError, AliasError, SettingsError, DeviceError or EngineError, each before any door
    is open; every engine has run once when this returns.
    """
    model = open_serving_model(find_serving_model(settings.models["model"].model, home, settings.config_dir))
    loaded = stamp([model])
    fetch = settings.models["model"].fetch_list[0] if settings.models["model"].fetch_list else FETCH
    check_aliases(model, fetch)
    description = describe(model, settings.options)
    check_size(model, description)
    pipeline = ClassificationPipeline(
        model,
        load_engines(model, settings.models["model"]),
        description,
        fetch,
        settings.server.max_pixels,
        loaded,
    )
    log.info("preprocessing of %s from %s", model.name, description.origin)
    pipeline.check()
    return pipeline
