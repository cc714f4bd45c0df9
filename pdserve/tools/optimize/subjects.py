"""What is optimised, by its task: how it takes an image, answers it, and whether two answers agree."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pdserve.engines import Engine
from pdserve.engines.detector_nms import OPERATOR
from pdserve.errors import UsageError
from pdserve.formats.model_files import read_program
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.models import catalog
from pdserve.models.find import find_serving_model
from pdserve.models.home import Home
from pdserve.pipelines.classification import FEED, FETCH, ClassificationPipeline, open_classification
from pdserve.pipelines.detector import SCALE_FACTOR, Detector, DetectorSettings, check_aliases, open_detector
from pdserve.pipelines.embedder import FETCH as FEATURES
from pdserve.pipelines.embedder import Embedder, open_embedder
from pdserve.pipelines.loading import load_engines
from pdserve.settings import ClassificationOptions, ModelSettings, ServerSettings, ServiceSettings
from pdserve.tools.optimize import agreement
from pdserve.tools.optimize.agreement import Agreement
from pdserve.vision.decode import decode
from pdserve.vision.types import Array

TASKS = ("classification", "embedding", "detection")
_ALL_BOXES = 100  # what the published detectors keep; of equal boxes it is chance which the best few are


@dataclass(frozen=True)
class Prepared:
    """One image: the model's feeds by alias, each with a batch axis of one, and its width and height."""

    feeds: Mapping[str, Array]
    size: tuple[int, int]


class Subject(Protocol):
    """A loaded float model, with what its service does before and after it.

    ``preprocessing`` is what a report tells of it.
    """

    @property
    def task(self) -> str: ...
    @property
    def model(self) -> ServingModel: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def preprocessing(self) -> Any: ...

    def prepare(self, data: bytes) -> Prepared:
        """An image file's bytes -> feeds. Raises ImageError."""

    def answers(self, prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        """What ``engine`` says of each, the float model's or another's of it. Raises EngineError."""

    def compare(self, floats: Sequence[Any], others: Sequence[Any]) -> Agreement:
        """Answers to the same images. Raises UsageError where these images cannot tell."""


@dataclass(frozen=True)
class Classifier:
    """See Subject; an answer is a row of scores."""

    pipeline: ClassificationPipeline
    task: str = "classification"

    @property
    def model(self) -> ServingModel:
        return self.pipeline.model

    @property
    def engine(self) -> Engine:
        return self.pipeline.engines[0]

    @property
    def preprocessing(self) -> Any:
        return [dict(op) for op in self.pipeline.description.chain.ops]

    def prepare(self, data: bytes) -> Prepared:
        image = self.pipeline.decode(data)
        height, width = image.shape[:2]
        return Prepared({FEED: self.pipeline.preprocess(image)[None]}, (width, height))

    def answers(self, prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        asked = replace(self.pipeline, engines=(engine,))
        return list(asked.infer([each.feeds[FEED][0] for each in prepared]))

    def compare(self, floats: Sequence[Any], others: Sequence[Any]) -> Agreement:
        postprocess = self.pipeline.description.postprocess
        top = 1 if postprocess.kind == "Topk" else None

        def answer(scores: Any) -> Hashable:
            return tuple((label.class_id, label.label) for label in postprocess.read(scores, top))

        return agreement.of_labels(floats, others, answer)


@dataclass(frozen=True)
class EmbedderSubject:
    """See Subject; an answer is a vector of length 1."""

    embedder: Embedder
    task: str = "embedding"

    @property
    def model(self) -> ServingModel:
        return self.embedder.model

    @property
    def engine(self) -> Engine:
        return self.embedder.engines[0]

    @property
    def preprocessing(self) -> Any:
        return [dict(op) for op in self.embedder.chain.ops]

    def prepare(self, data: bytes) -> Prepared:
        image = decode(data)
        height, width = image.shape[:2]
        alias = self.engine.feeds[0].alias
        return Prepared({alias: self.embedder.prepare(image)[None]}, (width, height))

    def answers(self, prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        alias = engine.feeds[0].alias
        asked = replace(self.embedder, engines=(engine,))
        return list(asked.infer([each.feeds[alias][0] for each in prepared]))

    def compare(self, floats: Sequence[Any], others: Sequence[Any]) -> Agreement:
        return agreement.of_vectors(np.stack(floats), np.stack(others))


@dataclass(frozen=True)
class DetectorSubject:
    """See Subject; an answer is all of an image's boxes over the service's threshold."""

    detector: Detector
    model: ServingModel
    task: str = "detection"

    @property
    def engine(self) -> Engine:
        return self.detector.engine

    @property
    def preprocessing(self) -> Any:
        settings = self.detector.settings
        return {"size": self.detector.size, "mean": settings.mean, "std": settings.std}

    def prepare(self, data: bytes) -> Prepared:
        image = decode(data)
        height, width = image.shape[:2]
        return Prepared(self.detector.prepare(image), (width, height))

    def answers(self, prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        asked = replace(self.detector, engine=engine)
        rows = asked.infer([each.feeds for each in prepared])
        return [asked.read(row, *each.size) for row, each in zip(rows, prepared, strict=True)]

    def compare(self, floats: Sequence[Any], others: Sequence[Any]) -> Agreement:
        return agreement.of_boxes(floats, others)


def open_subject(
    settings: ModelSettings, home: Home, results: ClassificationOptions | None = None, task: str | None = None
) -> Subject:
    """Find, check and load the float model, on the first of the devices, as its service would.

    ``task`` where the model does not tell; ``results`` are a classifier's. Raises UsageError for a model
    whose task nobody tells, and what the services raise.
    """
    settings = settings.model_copy(
        update={"precision": "fp32", "instances": 1, "devices": settings.devices[:1]}
    )
    model = open_serving_model(find_serving_model(settings.model, home))
    match task or task_of(model):
        case "classification":
            server = ServerSettings(name=model.name)
            wanted = ServiceSettings(
                "classification", server, {"model": settings}, results or ClassificationOptions()
            )
            return Classifier(open_classification(wanted, home))
        case "embedding":
            return EmbedderSubject(open_embedder(settings, home))
        case "detection":
            check_aliases(model.config.feeds, str(model.path))
            (engine,) = load_engines(model, settings)
            try:
                return DetectorSubject(open_detector(engine, DetectorSettings(max_results=_ALL_BOXES)), model)
            except BaseException:
                engine.close()
                raise
        case unknown:
            raise UsageError(f"There is no task {unknown!r}; there are {', '.join(TASKS)}.")


def task_of(model: ServingModel) -> str:
    """A model's task, by the catalog, else by its aliases and operators. Raises UsageError."""
    entry = catalog.load().get(model.name)
    if entry and entry.task in TASKS:
        return entry.task
    feeds, fetches = [v.alias for v in model.config.feeds], [v.alias for v in model.config.fetches]
    if SCALE_FACTOR in feeds or OPERATOR in read_program(model.files).operators:
        return "detection"
    if FETCH in fetches:
        return "classification"
    if FEATURES in fetches:
        return "embedding"
    raise UsageError(
        f"Nothing says what {model.name} does, with the fetches {', '.join(fetches)}; "
        f"give --task {', '.join(TASKS[:-1])} or {TASKS[-1]}."
    )
