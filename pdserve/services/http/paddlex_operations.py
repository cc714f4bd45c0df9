"""PaddleX's operations on an image: fields of a request, fields of a result, and which service has which.

Fields, types and defaults are those of PaddleX 3.7.2 (``paddlex.inference.serving.schemas``). None of a field
is the same as leaving it out: the service's own settings hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, Field

from pdserve.answers import Detections, Label, LabelledObjects, Labels, Objects
from pdserve.pipelines import SERVICES
from pdserve.pipelines.parameters import Parameters
from pdserve.services.http.paddlex_envelope import Envelope
from pdserve.services.service import Answering, Service

ByClass = float | dict[Literal["default"] | int, float] | list[float]
# As many labels are drawn, and as many characters of each.
_DRAWN_LABELS = 5
_DRAWN_CHARACTERS = 80


class ImageFields(BaseModel):
    """What every operation on an image takes: a file in base64, and whether to send it back, drawn on.

    The order of fields is PaddleX's too, as that in which what is wrong with them is said.
    """

    image: str


class ClassificationFields(ImageFields):
    """Of ``/image-classification``; ``topk``: how many classes."""

    topk: Annotated[int, Field(gt=0)] | None = None
    visualize: bool | None = None


class MultilabelFields(ImageFields):
    """Of ``/multilabel-image-classification``; ``threshold``: the least score, of all classes or of each."""

    visualize: bool | None = None
    threshold: ByClass | None = None


class DetectionFields(ImageFields):
    """Of ``/object-detection``; ``threshold``: the least score, of all classes or by class id."""

    threshold: float | dict[int, float] | None = None
    visualize: bool | None = None
    logId: str | None = None  # noqa: N815


class AttributeFields(ImageFields):
    """Of the recognition of attributes: the least scores of boxes and of attributes."""

    detThreshold: float | None = None  # noqa: N815
    visualize: bool | None = None
    clsThreshold: ByClass | None = None  # noqa: N815


class SearchFields(ImageFields):
    """Of ``/shitu-infer`` and ``/face-recognition-infer``: in which gallery, and how many of its images.

    ``hammingRadius`` has no meaning for vectors of floats, as in PaddleX.
    """

    indexKey: str | None = None  # noqa: N815
    detThreshold: float | None = None  # noqa: N815
    recThreshold: float | None = None  # noqa: N815
    hammingRadius: float | None = None  # noqa: N815
    topk: Annotated[int, Field(gt=0)] | None = None
    visualize: bool | None = None


class Category(BaseModel):
    """A class of an image."""

    id: int
    name: str
    score: float


class Categories(BaseModel):
    """The classes of an image."""

    categories: list[Category]
    image: str | None = None


class DetectedObject(BaseModel):
    """A box and its class."""

    bbox: tuple[float, float, float, float]
    categoryId: int  # noqa: N815
    categoryName: str  # noqa: N815
    score: float


class Boxes(BaseModel):
    """What was detected in an image."""

    detectedObjects: list[DetectedObject]  # noqa: N815
    image: str | None = None


class Attribute(BaseModel):
    """An attribute of what was detected."""

    label: str
    score: float


class Attributed(BaseModel):
    """What was detected, with its attributes."""

    bbox: tuple[float, float, float, float]
    attributes: list[Attribute]
    score: float


class RecResult(BaseModel):
    """An image of a gallery that is similar."""

    label: str
    score: float


class Recognized(BaseModel):
    """What was detected, and the gallery's most similar images."""

    bbox: tuple[float, float, float, float]
    recResults: list[RecResult]  # noqa: N815
    score: float


class RecognizedObjects(BaseModel):
    """The objects of an image."""

    detectedObjects: list[Recognized]  # noqa: N815
    image: str | None = None


class Faces(BaseModel):
    """The faces of an image."""

    faces: list[Recognized]
    image: str | None = None


class Pedestrians(BaseModel):
    """The pedestrians of an image."""

    pedestrians: list[Attributed]
    image: str | None = None


class Vehicles(BaseModel):
    """The vehicles of an image."""

    vehicles: list[Attributed]
    image: str | None = None


@dataclass(frozen=True)
class DrawnObject:
    """A box as `pdserve.vision.draw` takes it."""

    bbox: tuple[float, float, float, float]
    label: str
    score: float


@dataclass(frozen=True)
class Drawing:
    """What is drawn: boxes, or the ``labels`` of the whole image."""

    objects: Sequence[DrawnObject] = ()
    labels: Sequence[Label] | None = None


@dataclass(frozen=True)
class Served:
    """What decides which operations a service has: answer, how labels are chosen, models, regions."""

    answer: str
    postprocess: str
    models: str
    regions: str = ""

    @classmethod
    def of(cls, service: Answering) -> "Served":
        """What a service is; of one that is not loaded, what it was when it was."""
        entry = SERVICES[service.kind]
        answer = entry.answer.rpartition(":")[2]
        if not (isinstance(service, Service) and service.loaded):
            known = _KNOWN.get(service) if isinstance(service, Service) else None
            return known or cls(answer, "", "", entry.regions)
        pipeline: Any = service.replica.pipeline
        config = getattr(pipeline, "config", None)
        names = [each.name.lower() for each in pipeline.models.values()]
        found = cls(answer, config.postprocess.kind if config else "", " ".join(names), entry.regions)
        _KNOWN[service] = found
        return found


_KNOWN: "WeakKeyDictionary[Service, Served]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Operation:
    """An operation: its routes, and how requests and answers are read.

    ``parameters``: a request's fields -> how many labels, and what else is asked for. ``result``: an answer
    -> the result's fields. ``drawing``: an answer -> what is drawn of it. ``galleries``: how the routes of
    the galleries that it searches begin.
    """

    paths: tuple[str, ...]
    summary: str
    serves: Callable[[Served], bool]
    fields: type[ImageFields]
    parameters: Callable[[Any], tuple[int | None, Parameters]]
    result: Callable[[Any], dict[str, Any]]
    drawing: Callable[[Any], Drawing]
    answer_model: Any
    galleries: str = ""


def _categories(answer: Labels) -> dict[str, Any]:
    found = [{"id": each.class_id, "name": each.label, "score": each.score} for each in answer.labels]
    return {"categories": found}


def _labels(answer: Labels) -> Drawing:
    return Drawing(
        labels=[
            Label(each.class_id, each.label[:_DRAWN_CHARACTERS], each.score)
            for each in answer.labels[:_DRAWN_LABELS]
        ]
    )


def _score(threshold: float) -> float:
    """A least score of a box as float32 holds it: below 0 is any, above 1 none, and no number is none."""
    return min(max(threshold, -1.0), 2.0) if threshold == threshold else 2.0


def _det_parameters(fields: DetectionFields) -> tuple[int | None, Parameters]:
    given = fields.threshold
    if isinstance(given, dict):
        return None, Parameters({number: _score(each) for number, each in given.items()})
    return None, Parameters(None if given is None else _score(given))


def _attribute_parameters(fields: AttributeFields) -> tuple[int | None, Parameters]:
    least = None if fields.detThreshold is None else _score(fields.detThreshold)
    return None, Parameters(least, fields.clsThreshold)


def _boxes(answer: Detections) -> dict[str, Any]:
    found = [
        {"bbox": each.bbox, "categoryId": each.class_id, "categoryName": each.label, "score": each.score}
        for each in answer.objects
    ]
    return {"detectedObjects": found}


def _box_drawing(answer: Detections | Objects) -> Drawing:
    return Drawing([DrawnObject(e.bbox, e.label[:_DRAWN_CHARACTERS], e.score) for e in answer.objects])


def _attributed(name: str, answer: LabelledObjects) -> dict[str, Any]:
    found = [
        {
            "bbox": each.bbox,
            "attributes": [{"label": label.label, "score": label.score} for label in each.labels],
            "score": each.score,
        }
        for each in answer.objects
    ]
    return {name: found}


def _attribute_drawing(answer: LabelledObjects) -> Drawing:
    return Drawing(
        [
            DrawnObject(
                each.bbox, ", ".join(label.label for label in each.labels)[:_DRAWN_CHARACTERS], each.score
            )
            for each in answer.objects
        ]
    )


def _attributes(
    name: str, others: tuple[str, ...], paths: str, words: tuple[str, ...], model: Any
) -> Operation:
    """``words``: of which one is in the name of a model for this; ``others``: for another."""

    def serves(served: Served) -> bool:
        if served.answer != "LabelledObjects":
            return False
        return any(w in served.models for w in words) or not any(w in served.models for w in others)

    return Operation(
        (paths,),
        f"The {name} of an image, with attributes",
        serves,
        AttributeFields,
        _attribute_parameters,
        lambda answer: _attributed(name, answer),
        _attribute_drawing,
        Envelope[model],
    )


def _recognized(name: str, answer: Objects) -> dict[str, Any]:
    found = [
        {
            "bbox": each.detection.bbox if each.detection else each.bbox,
            "recResults": [{"label": match.label, "score": match.score} for match in each.matches],
            "score": each.detection.score if each.detection else 0.0,
        }
        for each in answer.objects
    ]
    return {name: found}


def _searching(
    name: str, prefix: str, boxes_alone: bool, least: tuple[float, float], model: Any
) -> Operation:
    """``least``: PaddleX's least scores of boxes and of similarity, where a request says nothing."""
    det, rec = least

    def parameters(fields: SearchFields) -> tuple[int | None, Parameters]:
        similarity = rec if fields.recThreshold is None else fields.recThreshold
        return fields.topk or _TOP_K, Parameters(
            _score(det if fields.detThreshold is None else fields.detThreshold),
            least_similarity=similarity,
        )

    return Operation(
        (f"/{prefix}-infer",),
        f"The {name} of an image, looked up in a gallery, in the form of PaddleX",
        lambda served: served.answer == "Objects" and (served.regions == "boxes") == boxes_alone,
        SearchFields,
        parameters,
        lambda answer: _recognized("faces" if boxes_alone else "detectedObjects", answer),
        _box_drawing,
        Envelope[model],
        prefix,
    )


# PaddleX's number of a gallery's images, where a request says nothing.
_TOP_K = 5
_ALTERNATIVES = ("Topk", "ThreshOutput", "")
_HUMAN, _VEHICLE = ("pedestrian", "human", "person"), ("vehicle",)

OPERATIONS: Sequence[Operation] = (
    Operation(
        ("/image-classification",),
        "The classes of an image, in the form of PaddleX",
        lambda served: served.answer == "Labels" and served.postprocess in _ALTERNATIVES,
        ClassificationFields,
        lambda fields: (fields.topk, Parameters()),
        _categories,
        _labels,
        Envelope[Categories],
    ),
    Operation(
        ("/multilabel-image-classification", "/image-multilabel-classification"),
        "The labels of an image, in the form of PaddleX",
        lambda served: served.answer == "Labels" and served.postprocess not in _ALTERNATIVES,
        MultilabelFields,
        lambda fields: (None, Parameters(label_threshold=fields.threshold)),
        _categories,
        _labels,
        Envelope[Categories],
    ),
    Operation(
        ("/object-detection",),
        "The objects of an image, in the form of PaddleX",
        lambda served: served.answer == "Detections",
        DetectionFields,
        _det_parameters,
        _boxes,
        _box_drawing,
        Envelope[Boxes],
    ),
    _attributes("pedestrians", _VEHICLE, "/pedestrian-attribute-recognition", _HUMAN, Pedestrians),
    _searching("objects", "shitu", False, (0.5, 0.5), RecognizedObjects),
    _searching("faces", "face-recognition", True, (0.6, 0.4), Faces),
    _attributes("vehicles", _HUMAN, "/vehicle-attribute-recognition", _VEHICLE, Vehicles),
)
"""Every operation on an image."""
