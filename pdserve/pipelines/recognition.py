"""Recognition (PP-ShiTu): image files in, recognised objects out.

Detector → boxes, and the whole image → crops → embedder → index → score threshold → suppression across
boxes.
"""

import asyncio
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pdserve.answers import Detection, FoundMatch, FoundObject, Objects
from pdserve.engines import Device
from pdserve.errors import PdserveError
from pdserve.formats.serving_model import ServingModel
from pdserve.index import search
from pdserve.index import store as index_folder
from pdserve.index.search import LoadedIndex, Match
from pdserve.models.home import Home
from pdserve.pipelines.base import Clock, Pipeline, PipelineModel, Steps
from pdserve.pipelines.detector import Detector, find_boxes, open_detectors
from pdserve.pipelines.embedder import Embedder, check_embedder, embed_images, open_embedder
from pdserve.pipelines.loading import open_model
from pdserve.settings import ModelSettings, RecognitionOptions, ServiceSettings
from pdserve.vision.boxes import Box, crop, crop_corners, suppress_results
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.postprocess import score_of
from pdserve.vision.types import Floats, Image8, Tensor

log = logging.getLogger("pdserve")


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
) -> tuple[FoundObject, ...]:
    """Keep what is similar enough, and of overlapping boxes the most similar."""
    enough = [
        (region, near)
        for region, near in zip(found, matches, strict=True)
        if near and near[0].similarity >= options.score_threshold
    ]
    corners = [crop_corners(region.box) for region, _ in enough]
    kept = suppress_results(corners, [near[0].similarity for _, near in enough], options.nms_threshold)
    return tuple(_object(corners[i], *enough[i]) for i in kept)


def _object(corners: tuple[int, int, int, int], region: Region, near: Sequence[Match]) -> FoundObject:
    matches = tuple(FoundMatch(m.label, m.image, score_of(m.similarity)) for m in near)
    detection = None
    if region.detected:
        x1, y1, x2, y2 = (round(x, 4) for x in (region.box.x1, region.box.y1, region.box.x2, region.box.y2))
        detection = Detection((x1, y1, x2, y2), score_of(region.box.score))
    return FoundObject(corners, matches[0].label, matches[0].score, matches, detection)


@dataclass(eq=False, kw_only=True)
class RecognitionPipeline(Pipeline[Objects]):
    """Detector, embedder and index.

    ``detectors``: one per device, none to recognise whole images. ``settings``: of the models by role.
    """

    detector_model: ServingModel | None
    detectors: tuple[Detector, ...]
    embedder: Embedder
    options: RecognitionOptions
    settings: Mapping[str, ModelSettings]
    index: LoadedIndex
    max_pixels: int = MAX_PIXELS
    loaded: Hashable = None

    @cached_property
    def models(self) -> Mapping[str, PipelineModel]:
        models = {}
        if self.detector_model:
            engines = tuple(detector.engine for detector in self.detectors)
            models["detector"] = PipelineModel(
                "detector", self.detector_model, engines, self.settings["detector"], self.detect
            )
        embedder, settings = self.embedder, self.settings["embedder"]
        models["embedder"] = PipelineModel(
            "embedder", embedder.model, embedder.engines, settings, embedder.infer
        )
        return models

    def detect(self, prepared: Sequence[Mapping[str, Floats]], engine: int = 0) -> list[Floats]:
        """Prepared images -> the detector's rows of each, on one of its devices. Raises EngineError."""
        return self.detectors[engine].infer(prepared)

    def crop_images(self, image: Image8, found: Sequence[Region]) -> list[Image8]:
        """The regions of an image, views."""
        return [crop(image, region.box) for region in found]

    def crops(self, image: Image8, found: Sequence[Region]) -> list[Tensor]:
        """The regions, as the embedder takes them."""
        return [self.embedder.prepare(part) for part in self.crop_images(image, found)]

    async def answer(
        self, images: Sequence[bytes | PdserveError], steps: Steps, top_k: int | None = None
    ) -> list[Objects | PdserveError]:
        """See `Pipeline.answer`. Each image goes its own way; the batches bring them together again."""
        if len(images) == 1:
            return [await self._one(images[0], steps, top_k)]
        tasks = [asyncio.ensure_future(self._one(image, steps, top_k)) for image in images]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one has failed for all
                task.cancel()

    async def embed(
        self, images: Sequence[bytes | PdserveError], steps: Steps
    ) -> list[Tensor | PdserveError]:
        """See `Pipeline.embed`."""
        return await embed_images(self.embedder, "embedder", images, self.try_decode, steps)

    async def _one(
        self, data: bytes | PdserveError, steps: Steps, top_k: int | None
    ) -> Objects | PdserveError:
        clock = Clock()
        image = await steps.work(self.try_decode, data)
        if isinstance(image, PdserveError):
            return image
        steps.record("decode", clock.lap("decode"))
        boxes: list[Box] | PdserveError = []
        if self.detector_model:
            boxes = await find_boxes(self.detectors[0], self.detector_model.name, image, steps, clock)
        if isinstance(boxes, PdserveError):
            return boxes
        found = regions(image, boxes)
        crops = await steps.work(self.crops, image, found)
        steps.record("preprocess", clock.lap("preprocess"), self.embedder.name)
        vectors: list[Tensor] = []
        for vector in await steps.infer("embedder", crops):
            if isinstance(vector, PdserveError):
                return vector
            vectors.append(vector)
        clock.lap("embed")
        answer = await steps.work(self._look_up, found, vectors, top_k, clock)
        steps.record("search", answer.timings_ms["search"] / 1000)
        return answer

    def _look_up(
        self, found: Sequence[Region], vectors: Sequence[Tensor], top_k: int | None, clock: Clock
    ) -> Objects:
        index = self.index  # one version for the whole of the image
        matches = index.search(np.stack(vectors), top_k or self.options.top_k)
        objects = choose(found, matches, self.options)
        clock.lap("search")
        return Objects(objects, index.version, clock.laps)

    def fields(self, answers: Sequence[Objects]) -> Mapping[str, str]:
        """``result``: the repr of a list of objects, or of such a list per image where there are several."""
        lists = [
            [
                {"bbox": list(each.bbox), "rec_docs": each.label, "rec_scores": float(np.float32(each.score))}
                for each in answer.objects
            ]
            for answer in answers
        ]
        return {"result": repr(lists[0] if len(lists) == 1 else lists)}

    def load_index(self) -> LoadedIndex:
        """The index that is published now, on the embedder's device where faiss can search there.

        Raises IndexFolderError, OtherEmbedderError.
        """
        return load_index(self.index.folder, self.embedder, self.settings["embedder"])

    def check(self) -> None:
        """Run every engine once. Raises ModelError, EngineError."""
        check_embedder(self.embedder)
        for detector in self.detectors:
            detector.check()


def open_recognition(settings: ServiceSettings, home: Home) -> RecognitionPipeline:
    """Find, check, load and warm up detector, embedder and index; see `ServiceEntry.open`."""
    wanted, options = settings.models["embedder"], settings.options
    _, loaded = open_model(wanted, home, settings.config_dir)
    embedder = open_embedder(wanted, home, settings.config_dir)
    detector_model: ServingModel | None = None
    detectors: tuple[Detector, ...] = ()
    try:
        if detector := settings.models.get("detector"):
            detector_model, files = open_model(detector, home, settings.config_dir)
            loaded |= files
            detectors = open_detectors(
                detector_model, detector, options.det_threshold, options.max_det_results
            )
        folder = index_folder.find(_index_name(settings), home)
        pipeline = RecognitionPipeline(
            detector_model=detector_model,
            detectors=detectors,
            embedder=embedder,
            options=options,
            settings=settings.models,
            index=load_index(folder, embedder, wanted),
            max_pixels=settings.server.max_pixels,
            loaded=loaded,
        )
        pipeline.check()
    except BaseException:
        for each in detectors:
            each.engine.close()
        embedder.close()
        raise
    log.info("index %s: %d entries", folder, pipeline.index.count)
    return pipeline


def _index_name(settings: ServiceSettings) -> str:
    """A folder beside the configuration file, else what was named."""
    beside = settings.config_dir / settings.options.index
    return str(beside) if beside.is_dir() else settings.options.index


def load_index(folder: Path, embedder: Embedder, settings: ModelSettings) -> LoadedIndex:
    """Load an index, which must be this embedder's. Raises UsageError, IndexFolderError."""
    index = search.load(folder)
    index.require(embedder)
    device = Device.parse(settings.devices[0])
    return index if device.kind != "gpu" else index.on_gpu(device.index)
