"""The recognition pipeline (PP-ShiTu): image files in, recognised objects out.

Detector → boxes, and the whole image → crops → embedder → index → score threshold → suppression across
boxes. It knows engines and an index, and nothing of sockets.
"""

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pdserve.errors import PdserveError
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.index import store as index_folder
from pdserve.index.search import LoadedIndex, Match, load
from pdserve.models.find import find_serving_model
from pdserve.models.home import Home
from pdserve.pipelines.detector import Detector, DetectorSettings, Prepared, check_aliases, open_detector
from pdserve.pipelines.embedder import Embedder, open_embedder
from pdserve.pipelines.loading import load_engines, stamp
from pdserve.settings import ModelSettings, RecognitionOptions, ServiceSettings
from pdserve.vision.boxes import Box, crop, crop_corners, suppress_results
from pdserve.vision.decode import MAX_PIXELS, decode
from pdserve.vision.types import Floats, Image8, Tensor

log = logging.getLogger("pdserve")


@dataclass(frozen=True)
class Recognized:
    """One object: the whole pixels ``bbox`` (x1, y1, x2, y2; x2 and y2 outside) and the gallery's nearest.

    ``matches``, best first, is never empty. ``detection`` is the detector's own box, None for the whole
    image.
    """

    bbox: tuple[int, int, int, int]
    matches: tuple[Match, ...]
    detection: Box | None

    @property
    def label(self) -> str:
        return self.matches[0].label

    @property
    def score(self) -> float:
        return self.matches[0].similarity


@dataclass(frozen=True)
class Answer:
    """What is in an image, the most similar first; the version of the index that says so; ms per stage."""

    objects: tuple[Recognized, ...]
    index_version: int
    timings_ms: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Region:
    """A part of an image to be looked up."""

    box: Box
    detected: bool


def regions(image: Image8, boxes: Sequence[Box]) -> list[Region]:
    """The detector's boxes, best first, and the whole image."""
    height, width = image.shape[:2]
    return [*(Region(box, True) for box in boxes), Region(Box(0, 0, width, height, 1.0), False)]


def choose(
    found: Sequence[Region], matches: Sequence[Sequence[Match]], options: RecognitionOptions
) -> tuple[Recognized, ...]:
    """Keep what is similar enough, and of overlapping boxes the most similar."""
    enough = [
        (region, near)
        for region, near in zip(found, matches, strict=True)
        if near and near[0].similarity >= options.score_threshold
    ]
    corners = [crop_corners(region.box) for region, _ in enough]
    kept = suppress_results(corners, [near[0].similarity for _, near in enough], options.nms_threshold)
    return tuple(
        Recognized(corners[i], tuple(enough[i][1]), enough[i][0].box if enough[i][0].detected else None)
        for i in kept
    )


@dataclass(frozen=True)
class RecognitionPipeline:
    """The models and the options; the index comes with each call, since a newer one may be published.

    ``detectors``: one per device, none to recognise whole images. ``stamp``: of the models' files, when
    they were loaded.
    """

    detector_model: ServingModel | None
    detectors: tuple[Detector, ...]
    embedder: Embedder
    options: RecognitionOptions
    max_pixels: int = MAX_PIXELS
    stamp: Hashable = None

    @property
    def models(self) -> tuple[ServingModel, ...]:
        """The models that run."""
        return (*((self.detector_model,) if self.detector_model else ()), self.embedder.model)

    def decode(self, data: bytes) -> Image8:
        """An image file's bytes -> H×W×3 uint8 RGB. Raises ImageError."""
        return decode(data, self.max_pixels)

    def detect(self, prepared: Sequence[Prepared], engine: int = 0) -> list[Floats]:
        """Prepared images -> the detector's rows of each, on one of its devices. Raises EngineError."""
        return self.detectors[engine].infer(prepared)

    def crop_images(self, image: Image8, found: Sequence[Region]) -> list[Image8]:
        """The regions of an image, views."""
        return [crop(image, region.box) for region in found]

    def crops(self, image: Image8, found: Sequence[Region]) -> list[Tensor]:
        """The regions, as the embedder takes them."""
        return [self.embedder.prepare(part) for part in self.crop_images(image, found)]

    def predict(
        self, images: Sequence[bytes], index: LoadedIndex, top_k: int | None = None
    ) -> list[Answer | PdserveError]:
        """All stages for several image files, one after the other; a bad one gets its error in its place."""
        out: list[Answer | PdserveError] = []
        for data in images:
            try:
                out.append(self._one(data, index, top_k))
            except PdserveError as error:
                out.append(error)
        return out

    def _one(self, data: bytes, index: LoadedIndex, top_k: int | None) -> Answer:
        clock = Clock()
        image = self.decode(data)
        clock.lap("decode")
        boxes: list[Box] = []
        if self.detectors:
            height, width = image.shape[:2]
            (rows,) = self.detect([self.detectors[0].prepare(image)])
            boxes = self.detectors[0].read(rows, width, height)
            clock.lap("detect")
        found = regions(image, boxes)
        vectors = self.embedder.infer(self.crops(image, found))
        clock.lap("embed")
        matches = index.search(np.stack(vectors), top_k or self.options.top_k)
        clock.lap("search")
        return Answer(choose(found, matches, self.options), index.version, clock.laps)

    def check(self) -> None:
        """Run every engine once. Raises ModelError, EngineError."""
        blank = np.zeros((64, 64, 3), np.uint8)
        for number in range(len(self.embedder.engines)):
            self.embedder.infer([self.embedder.prepare(blank)], number)
        for detector in self.detectors:
            detector.check()

    def close(self) -> None:
        for detector in self.detectors:
            detector.engine.close()
        self.embedder.close()


class Clock:
    """Laps in milliseconds by name; laps of one name add up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> float:
        """Close a lap; its seconds."""
        now = time.perf_counter()
        seconds = now - self._since
        self.laps[name] = round(self.laps.get(name, 0) + seconds * 1000, 3)
        self._since = now
        return seconds


def open_recognition(settings: ServiceSettings, home: Home) -> RecognitionPipeline:
    """Find, check, load and warm up detector and embedder.

    Raises ModelError, AliasError, SettingsError, DeviceError or EngineError, each before any port is open.
    """
    wanted = settings.models["embedder"]
    embedder_model = open_serving_model(find_serving_model(wanted.model, home, settings.config_dir))
    loaded = stamp([embedder_model])
    embedder = open_embedder(wanted, home, settings.config_dir)
    detector_model: ServingModel | None = None
    detectors: tuple[Detector, ...] = ()
    try:
        if detector := settings.models.get("detector"):
            found = find_serving_model(detector.model, home, settings.config_dir)
            detector_model = open_serving_model(found)
            loaded |= stamp([detector_model])
            detectors = _open_detectors(detector_model, detector, settings.options)
    except BaseException:
        embedder.close()
        raise
    pipeline = RecognitionPipeline(
        detector_model, detectors, embedder, settings.options, settings.server.max_pixels, loaded
    )
    pipeline.check()
    return pipeline


def _open_detectors(
    model: ServingModel, settings: ModelSettings, options: RecognitionOptions
) -> tuple[Detector, ...]:
    check_aliases(model.config.feeds, str(model.path))
    if settings.fetch_list:
        log.warning("the detector's fetch_list has no effect: its outputs are told by what they hold")
    wanted = DetectorSettings(threshold=options.det_threshold, max_results=options.max_det_results)
    return tuple(open_detector(engine, wanted) for engine in load_engines(model, settings))


def open_index(settings: ServiceSettings, home: Home, embedder: Embedder) -> LoadedIndex:
    """Find and load the index, which must be this embedder's. Raises UsageError, IndexFolderError."""
    beside = settings.config_dir / settings.options.index
    wanted = str(beside) if beside.is_dir() else settings.options.index
    index = load(index_folder.find(wanted, home))
    index.require(embedder)
    return index
