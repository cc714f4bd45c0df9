"""Pipelines of regions: image files in; of each its regions, a model on each of them, an answer out.

The regions are what a detector finds, the whole image, or both. What is done with them is a `Stage`: a search
in a gallery, labels, features, or nothing more. Which parts a kind of service has is said by its file in
``kinds/``, or by a user's own (`pdserve.pipelines.definition`).
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import Any

from pdserve.errors import ImageError, PdserveError
from pdserve.formats.serving_model import ServingModel
from pdserve.index.search import LoadedIndex
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.base import Clock, Pipeline, PipelineModel, Steps, record_laps, together
from pdserve.pipelines.detector import Detector, find_boxes, open_detectors
from pdserve.pipelines.embedder import Embedder, embed_images
from pdserve.pipelines.entry import RESULTS
from pdserve.pipelines.loading import open_model
from pdserve.settings import ModelSettings, ServiceSettings
from pdserve.vision.boxes import Box, crop
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.types import Floats, Image8, Tensor

DETECTOR = "detector"


@dataclass(frozen=True)
class Region:
    """A part of an image to be looked at; ``detected``: by the detector, else it is the whole image."""

    box: Box
    detected: bool


def regions(image: Image8, boxes: Sequence[Box], which: str = "boxes and image") -> list[Region]:
    """The detector's boxes, best first, and the whole image, as far as ``which`` names them."""
    height, width = image.shape[:2]
    found = [Region(box, True) for box in boxes] if "boxes" in which else []
    return [*found, Region(Box(0, 0, width, height, 1.0), False)] if "image" in which else found


@dataclass(frozen=True)
class Cut:
    """An image's regions, ready for the model; ``clock`` has run since its bytes were there."""

    found: list[Region]
    tensors: list[Tensor]
    clock: Clock


class Stage(ABC):
    """What is done with an image's regions, and the model that looks at them.

    ``model``: that model under its ``role``, None where none looks at them. ``lap``: how ``timings_ms`` call
    its run. ``loaded``: the signature of its files. ``index`` and ``embedder``: see `Pipeline`.
    """

    role: str = ""
    lap: str = ""
    model: PipelineModel | None = None
    loaded: frozenset[Hashable] = frozenset()
    index: LoadedIndex | None = None
    embedder: Embedder | None = None

    def prepare(self, part: Image8) -> Tensor:
        """A region's H×W×3 uint8 RGB pixels, a view -> what the model takes. Raises ImageError."""
        raise NotImplementedError("no model looks at regions")

    @abstractmethod
    async def answer(self, cut: Cut, results: Sequence[Tensor], steps: Steps, top_k: int | None) -> Any:
        """The answer for an image; ``results``: what the model made of each region, if there is one."""

    @abstractmethod
    def fields(self, answers: Sequence[Any]) -> Mapping[str, str]:
        """See `Pipeline.fields`."""

    def load_index(self) -> LoadedIndex:
        """See `Pipeline.load_index`."""
        raise NotImplementedError("a pipeline without an index")

    def check(self) -> None:
        """Run every engine once. Raises EngineError, ModelError, SettingsError."""
        return

    def close(self) -> None:
        """Free the engines."""
        for engine in self.model.engines if self.model else ():
            engine.close()


@dataclass(eq=False, kw_only=True)
class RegionsPipeline(Pipeline[Any]):
    """A detector, or none, and a stage. ``which``: regions, of `pdserve.pipelines.entry.REGIONS`.

    ``detectors``: one per device, none for whole images. ``alone``: the kind has one model, on whose account
    decoding goes. ``settings``: of the models by role.
    """

    which: str
    stage: Stage
    alone: bool
    settings: Mapping[str, ModelSettings]
    options: Any
    detector_model: ServingModel | None = None
    detectors: tuple[Detector, ...] = ()
    max_pixels: int = MAX_PIXELS
    loaded: Hashable = None

    @cached_property
    def models(self) -> Mapping[str, PipelineModel]:
        models = {}
        if self.detector_model:
            engines = tuple(detector.engine for detector in self.detectors)
            first = self.detectors[0]
            models[DETECTOR] = PipelineModel(
                DETECTOR,
                self.detector_model,
                engines,
                self.settings[DETECTOR],
                self.detect,
                first.prepare,
                first.size,
                by_row=False,
            )
        if self.stage.model:
            models[self.stage.role] = self.stage.model
        return models

    @property
    def working_bytes(self) -> int:
        """See `Pipeline`: a detector that does not begin by resizing has the whole image in floats, twice."""
        chain = self.detectors[0].settings.chain if self.detectors else None
        return 24 if chain and not (chain.steps and chain.steps[0].resizes) else 0

    @property
    def index(self) -> LoadedIndex | None:
        """The version of the index that is searched; see `Pipeline`."""
        return self.stage.index

    @index.setter
    def index(self, index: LoadedIndex | None) -> None:
        self.stage.index = index

    @property
    def embedder(self) -> Embedder | None:  # type: ignore[override]
        """What `embed` embeds with; see `Pipeline`."""
        return self.stage.embedder

    def load_index(self) -> LoadedIndex:
        """See `Pipeline.load_index`."""
        return self.stage.load_index()

    def detect(self, prepared: Sequence[Mapping[str, Floats]], engine: int = 0) -> list[Floats]:
        """Prepared images -> the detector's rows of each, on one of its devices. Raises EngineError."""
        return self.detectors[engine].infer(prepared)

    def crop_images(self, image: Image8, found: Sequence[Region]) -> list[Image8]:
        """The regions of an image, views."""
        return [crop(image, region.box) for region in found]

    def crops(self, image: Image8, found: Sequence[Region]) -> list[Tensor]:
        """The regions, as the stage's model takes them. Raises ImageError."""
        return [self.stage.prepare(part) for part in self.crop_images(image, found)]

    async def embed(
        self, images: Sequence[bytes | PdserveError], steps: Steps
    ) -> list[Tensor | PdserveError]:
        """See `Pipeline.embed`."""
        if self.stage.embedder is None:
            return await super().embed(images, steps)
        return await embed_images(self.stage.embedder, self.stage.role, images, steps)

    async def answer(
        self, images: Sequence[bytes | PdserveError], steps: Steps, top_k: int | None = None
    ) -> list[Any]:
        """See `Pipeline.answer`. Each image goes its own way; the batches bring them together again."""
        return await together([self._one(image, steps, top_k) for image in images])

    async def _one(self, data: bytes | PdserveError, steps: Steps, top_k: int | None) -> Any:
        cut = await (self._detected(data, steps) if self.detectors else self._whole(data, steps))
        if isinstance(cut, PdserveError):
            return cut
        results: list[Tensor] = []
        if self.stage.model:
            for result in await steps.infer(self.stage.role, cut.tensors):
                if isinstance(result, PdserveError):
                    return result
                results.append(result)
            cut.clock.lap(self.stage.lap)
        return await self.stage.answer(cut, results, steps, top_k)

    async def _detected(self, data: bytes | PdserveError, steps: Steps) -> Cut | PdserveError:
        """Decode an image, detect in it, and cut out what the stage's model looks at."""
        clock = Clock()
        async with steps.pixels(data) as image:
            if isinstance(image, PdserveError):
                return image
            return await self._cut_out(image, clock, steps)

    async def _cut_out(self, image: Image8, clock: Clock, steps: Steps) -> Cut | PdserveError:
        name = self.models[DETECTOR].name
        steps.record("decode", clock.lap("decode"), name if self.alone else "")
        try:
            boxes = await find_boxes(self.detectors[0], name, image, steps, clock)
        except ImageError as error:  # it would become too large
            return error
        if isinstance(boxes, PdserveError):
            return boxes
        which = self.which
        if steps.parameters.least_similarity is not None and "image" in which:
            which = "boxes" if boxes else "image"
        found = regions(image, boxes, which)
        if not (self.stage.model and found):
            return Cut(found, [], clock)
        tensors = await steps.work(self._try_crops, image, found)
        if isinstance(tensors, PdserveError):
            return tensors
        steps.record("preprocess", clock.lap("preprocess"), self.stage.model.name)
        return Cut(found, tensors, clock)

    async def _whole(self, data: bytes | PdserveError, steps: Steps) -> Cut | PdserveError:
        """Decode an image for the stage's model, in one piece of work."""
        clock = Clock()

        def cut_whole(image: Image8, decode_s: float) -> Cut:
            clock.lap("decode")
            found = regions(image, (), "image")
            tensors = self.crops(image, found)
            clock.lap("preprocess")
            return Cut(found, tensors, clock)

        cut = await steps.decoded(data, cut_whole)
        if not isinstance(cut, PdserveError) and self.stage.model:
            name = self.stage.model.name
            record_laps(steps, cut.clock, name if self.alone else "", name)
        return cut

    def _try_crops(self, image: Image8, found: Sequence[Region]) -> list[Tensor] | PdserveError:
        try:
            return self.crops(image, found)
        except PdserveError as error:
            return error

    def fields(self, answers: Sequence[Any]) -> Mapping[str, str]:
        """See `Pipeline.fields`."""
        return self.stage.fields(answers)

    def check(self) -> None:
        """Run every engine once. Raises ModelError, EngineError, SettingsError."""
        self.stage.check()
        for detector in self.detectors:
            detector.check()


def open_regions(settings: ServiceSettings, home: Home) -> RegionsPipeline:
    """Find, check, load and warm up detector and stage; see `ServiceEntry.open`."""
    entry, options = SERVICES[settings.kind], settings.options
    role = next((role for role in settings.models if role != DETECTOR), "")
    stage: Stage = resolve_name(RESULTS[entry.result].stage)(role, settings, home)
    loaded = stage.loaded
    model: ServingModel | None = None
    detectors: tuple[Detector, ...] = ()
    try:
        if wanted := settings.models.get(DETECTOR):
            model, files = open_model(wanted, home, settings.config_dir)
            loaded |= files
            detectors = open_detectors(model, wanted, options.det_threshold, options.max_det_results)
        pipeline = RegionsPipeline(
            which=entry.regions,
            stage=stage,
            alone=len(entry.roles) == 1,
            settings=settings.models,
            options=options,
            detector_model=model,
            detectors=detectors,
            max_pixels=settings.server.max_pixels,
            loaded=loaded,
        )
        pipeline.check()
    except BaseException:
        for each in detectors:
            each.engine.close()
        stage.close()
        raise
    return pipeline
