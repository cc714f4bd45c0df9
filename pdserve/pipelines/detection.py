"""Object detection: a detector's boxes, labels and scores, and nothing behind them."""

import ast
import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pdserve.errors import PdserveError
from pdserve.formats.serving_model import ServingModel
from pdserve.models.home import Home
from pdserve.models.labels import read_labels
from pdserve.pipelines.base import Clock, Pipeline, PipelineModel, Steps
from pdserve.pipelines.detector import Detector, find_boxes, open_detectors
from pdserve.pipelines.loading import open_model
from pdserve.settings import ModelSettings, ServiceSettings
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.postprocess import score_of


@dataclass(frozen=True)
class DetectedObject:
    """A detected object: its box, its class, the detector's score in [0, 1]."""

    bbox: tuple[float, float, float, float] = field(
        metadata={"description": "x1, y1, x2, y2 in pixels and fractions of them"}
    )
    class_id: int
    label: str
    score: float


@dataclass(frozen=True)
class Detections:
    """The answer of detection for one image: its objects, the best first."""

    objects: tuple[DetectedObject, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], count: int) -> "list[Detections]":
        """Read the pipeline protocol's field ``result``: a list per image of objects as mappings."""
        return [
            cls(tuple(DetectedObject(tuple(x["bbox"]), x["class_id"], x["label"], x["score"]) for x in found))
            for found in ast.literal_eval(fields["result"])
        ]


@dataclass(eq=False)
class DetectionPipeline(Pipeline[Detections]):
    """A detector, once per device. ``names``: the labels by class id, None for none."""

    model: ServingModel
    detectors: tuple[Detector, ...]
    names: tuple[str, ...] | None
    settings: ModelSettings
    max_pixels: int = MAX_PIXELS
    loaded: Hashable = None

    @cached_property
    def models(self) -> Mapping[str, PipelineModel]:
        engines = tuple(detector.engine for detector in self.detectors)
        infer = lambda items, engine=0: self.detectors[engine].infer(items)  # noqa: E731
        return {"detector": PipelineModel("detector", self.model, engines, self.settings, infer)}

    async def answer(
        self, images: Sequence[bytes | PdserveError], steps: Steps, top_k: int | None = None
    ) -> list[Detections | PdserveError]:
        """See `Pipeline.answer`; ``top_k``: the best boxes alone."""
        if len(images) == 1:
            return [await self._one(images[0], steps, top_k)]
        return await asyncio.gather(*(self._one(image, steps, top_k) for image in images))

    async def _one(
        self, data: bytes | PdserveError, steps: Steps, top_k: int | None
    ) -> Detections | PdserveError:
        clock = Clock()
        image = await steps.work(self.try_decode, data)
        if isinstance(image, PdserveError):
            return image
        steps.record("decode", clock.lap("decode"), self.model.name)
        boxes = await find_boxes(self.detectors[0], self.model.name, image, steps, clock)
        if isinstance(boxes, PdserveError):
            return boxes
        objects = tuple(
            DetectedObject(
                (round(box.x1, 4), round(box.y1, 4), round(box.x2, 4), round(box.y2, 4)),
                box.class_id,
                self._label(box.class_id),
                score_of(box.score),
            )
            for box in boxes[:top_k]
        )
        return Detections(objects)

    def _label(self, class_id: int) -> str:
        return self.names[class_id] if self.names and class_id < len(self.names) else str(class_id)

    def fields(self, answers: Sequence[Detections]) -> Mapping[str, str]:
        """``result``: the repr of a list per image of objects as mappings."""
        return {
            "result": repr([[vars(each) | {"bbox": list(each.bbox)} for each in a.objects] for a in answers])
        }

    def check(self) -> None:
        """Run every engine once. Raises ModelError."""
        for detector in self.detectors:
            detector.check()


def open_detection(settings: ServiceSettings, home: Home) -> DetectionPipeline:
    """Find, check, load and warm up a detector; see `ServiceEntry.open`."""
    wanted, options = settings.models["detector"], settings.options
    model, loaded = open_model(wanted, home, settings.config_dir)
    names = read_labels(options.labels) if options.labels else model.description.labels
    detectors = open_detectors(model, wanted, options.det_threshold, options.max_det_results)
    return DetectionPipeline(model, detectors, names, wanted, settings.server.max_pixels, loaded).checked()
