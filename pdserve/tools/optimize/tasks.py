"""The tasks of models: how a model takes an image and answers it, and how well two forms of it agree.

Each task has its measure of agreement, a share from 0 to 1 over the same images:

- Classifier, ``top-1``: the share of images whose first label is the same; of models that answer by
  thresholds, with several labels or with attributes, the share whose labels are all the same.
- Embedder, ``recall@1``: the share of images whose nearest neighbour among the others is found, where the
  float model says which is nearest (recall@R as in Jégou, Douze, Schmid: Product quantization for nearest
  neighbor search, TPAMI 33, 2011, section V). The gallery is the float model's and the query the optimised
  one's, as when an index is searched that was built before. A neighbour that is less similar by no more
  than 0.01 is as good: pictures of one thing are often nearer to each other than that. Held against the
  limit is the lesser of this and the median cosine between the two vectors of an image, so that
  similarities keep their scale.
- Detector, ``boxes``: 2·m ÷ (a + b) for a and b boxes of which m are matched, one to one, by the
  intersection over union of at least 0.9, over all images.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pdserve.engines import Engine
from pdserve.engines.detector_nms import OPERATOR
from pdserve.errors import UsageError
from pdserve.formats.model_files import read_program
from pdserve.formats.serving_model import ServingModel
from pdserve.models import catalog
from pdserve.models.find import open_model
from pdserve.models.home import Home
from pdserve.pipelines.classification import FEED, FETCH, open_classification
from pdserve.pipelines.detector import (
    SCALE_FACTOR,
    DetectorSettings,
    check_aliases,
    describe_detector,
    open_detector,
)
from pdserve.pipelines.embedder import FETCH as FEATURES
from pdserve.pipelines.embedder import open_embedder
from pdserve.pipelines.loading import load_engines
from pdserve.settings import ClassificationOptions, ModelSettings, ServerSettings, ServiceSettings
from pdserve.vision.boxes import Box, iou
from pdserve.vision.decode import decode
from pdserve.vision.types import Array, Floats

MIN_IOU = 0.9
_ALL_BOXES = 100  # what the published detectors keep; which of equal boxes are the best few is chance
_ROWS = 1024  # of a table of similarities at a time
_AS_NEAR = 0.01
_ROUNDING = 1e-6  # of an image that is there twice


@dataclass(frozen=True)
class Prepared:
    """One image: the model's feeds by alias, each with a batch axis of one, and its width and height."""

    feeds: Mapping[str, Array]
    size: tuple[int, int]


@dataclass(frozen=True)
class Agreement:
    """``value`` is held against the limit; ``figures`` are all there are, by name."""

    measure: str
    value: float
    images: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """A loaded float model, with what its service does before and after it.

    ``preprocessing``: for the report. ``prepare``: an image file's bytes -> feeds; raises ImageError.
    ``answers``: what an engine, the float model's or that of another form, answers to each image; raises
    EngineError. ``compare``: the float model's and another's answers to the same images; raises UsageError
    where these images cannot decide.
    """

    name: str
    model: ServingModel
    engine: Engine
    preprocessing: Any
    prepare: Callable[[bytes], Prepared]
    answers: Callable[[Sequence[Prepared], Engine], list[Any]]
    compare: Callable[[Sequence[Any], Sequence[Any]], Agreement]


def open_task(
    settings: ModelSettings, home: Home, options: ClassificationOptions | None = None, name: str | None = None
) -> Task:
    """Find, check and load the float model, on the first of the devices, as its service would.

    ``name``: the task, where the model does not say; ``options`` are a classifier's. Raises UsageError for
    an unknown task, and what the services raise.
    """
    settings = settings.model_copy(
        update={"precision": "fp32", "instances": 1, "devices": settings.devices[:1]}
    )
    model = open_model(settings.model, home)
    name = name or task_of(model)
    if name not in TASKS:
        raise UsageError(f"There is no task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name](model, settings, home, options or ClassificationOptions())


def task_of(model: ServingModel) -> str:
    """A model's task, by its description, the catalog, its aliases and operators. Raises UsageError."""
    if said := model.description.task:
        return said if said in TASKS else "classification"  # which multilabel and attributes are too
    entry = catalog.load().get(model.name)
    if entry and entry.task is not None and entry.task in TASKS:
        return entry.task
    feeds, fetches = [v.alias for v in model.config.feeds], [v.alias for v in model.config.fetches]
    if SCALE_FACTOR in feeds or OPERATOR in read_program(model.files).operators:
        return "detection"
    if FETCH in fetches:
        return "classification"
    if FEATURES in fetches:
        return "embedding"
    *others, last = TASKS
    raise UsageError(
        f"Nothing says what {model.name} does, with the fetches {', '.join(fetches)}; "
        f"give --task {', '.join(others)} or {last}."
    )


def _classification(
    model: ServingModel, settings: ModelSettings, home: Home, options: ClassificationOptions
) -> Task:
    """An answer is a row of scores."""
    server = ServerSettings(name=model.name)
    pipeline = open_classification(
        ServiceSettings("classification", server, {"model": settings}, options), home
    )
    postprocess = pipeline.config.postprocess
    top = 1 if postprocess.kind == "Topk" else None

    def prepare(data: bytes) -> Prepared:
        image = pipeline.decode(data)
        return Prepared({FEED: pipeline.preprocess(image)[None]}, _size(image))

    def answers(prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        return list(replace(pipeline, engines=(engine,)).infer([each.feeds[FEED][0] for each in prepared]))

    def labels(scores: Any) -> Hashable:
        return tuple((label.class_id, label.label) for label in postprocess.read(scores, top))

    return Task(
        "classification",
        pipeline.model,
        pipeline.engines[0],
        [dict(op) for op in pipeline.config.chain.ops],
        prepare,
        answers,
        lambda floats, others: compare_labels(floats, others, labels),
    )


def _embedding(
    model: ServingModel, settings: ModelSettings, home: Home, options: ClassificationOptions
) -> Task:
    """An answer is a vector of length 1."""
    embedder = open_embedder(settings, home)
    alias = embedder.engines[0].feeds[0].alias

    def prepare(data: bytes) -> Prepared:
        image = decode(data)
        return Prepared({alias: embedder.prepare(image)[None]}, _size(image))

    def answers(prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        return list(replace(embedder, engines=(engine,)).infer([each.feeds[alias][0] for each in prepared]))

    return Task(
        "embedding",
        embedder.model,
        embedder.engines[0],
        [dict(op) for op in embedder.chain.ops],
        prepare,
        answers,
        lambda floats, others: compare_vectors(np.stack(floats), np.stack(others)),
    )


def _detection(
    model: ServingModel, settings: ModelSettings, home: Home, options: ClassificationOptions
) -> Task:
    """An answer is all of an image's boxes over the service's threshold."""
    check_aliases(model.config.feeds, model.path)
    (engine,) = load_engines(model, settings)
    try:
        settings_of = describe_detector(model, DetectorSettings.threshold, _ALL_BOXES)
        detector = open_detector(engine, settings_of)
    except BaseException:
        engine.close()
        raise

    def prepare(data: bytes) -> Prepared:
        image = decode(data)
        return Prepared(detector.prepare(image), _size(image))

    def answers(prepared: Sequence[Prepared], engine: Engine) -> list[Any]:
        other = replace(detector, engine=engine)
        rows = other.infer([each.feeds for each in prepared])
        return [other.read(row, *each.size) for row, each in zip(rows, prepared, strict=True)]

    own = detector.settings
    plain = {"size": detector.size, "mean": own.mean, "std": own.std}
    preprocessing = [dict(op) for op in own.chain.ops] if own.chain else plain
    return Task("detection", model, engine, preprocessing, prepare, answers, compare_boxes)


def _size(image: Array) -> tuple[int, int]:
    """Width and height."""
    return image.shape[1], image.shape[0]


TASKS: Mapping[str, Callable[[ServingModel, ModelSettings, Home, ClassificationOptions], Task]] = {
    "classification": _classification,
    "embedding": _embedding,
    "detection": _detection,
}


def compare_labels(
    floats: Sequence[Floats], others: Sequence[Floats], labels: Callable[[Floats], Hashable]
) -> Agreement:
    """Compare rows of scores of the same images; ``labels`` of a row must be the same."""
    same = [labels(a) == labels(b) for a, b in zip(floats, others, strict=True)]
    furthest = max(float(np.abs(a - b).max()) for a, b in zip(floats, others, strict=True))
    share = float(np.mean(same))
    return Agreement("top-1", share, len(same), {"top_1": share, "max_score_difference": furthest})


def compare_vectors(floats: Floats, others: Floats) -> Agreement:
    """Compare vectors of the same images, (n, dimension), of length 1. Raises UsageError for fewer than two
    images.
    """
    if len(floats) < 2:
        raise UsageError("An embedder is compared on at least 2 images; give more with --images.")
    cosines = np.einsum("ij,ij->i", floats, others)
    found = exactly = 0
    for at in range(0, len(floats), _ROWS):
        rows = np.arange(at, min(at + _ROWS, len(floats)))
        true, asked = floats[rows] @ floats.T, others[rows] @ floats.T
        for similarities in (true, asked):
            similarities[np.arange(len(rows)), rows] = -np.inf  # an image is not its own neighbour
        lost = true.max(axis=1) - true[np.arange(len(rows)), asked.argmax(axis=1)]
        found += int((lost <= _AS_NEAR).sum())
        exactly += int((lost <= _ROUNDING).sum())
    recall, median = found / len(floats), float(np.median(cosines))
    figures = {
        "recall_at_1": recall,
        "recall_at_1_exact": exactly / len(floats),
        "cosine_median": median,
        "cosine_min": float(cosines.min()),
    }
    return Agreement("recall@1", min(recall, median), len(floats), figures)


def compare_boxes(floats: Sequence[Sequence[Box]], others: Sequence[Sequence[Box]]) -> Agreement:
    """Compare boxes of the same images. Raises UsageError where there are none in any."""
    pairs = [pair for a, b in zip(floats, others, strict=True) for pair in _matched(a, b)]
    counts = sum(map(len, floats)), sum(map(len, others))
    if not any(counts):
        raise UsageError("The detector finds nothing in these images; give --images with things in them.")
    share = 2 * len(pairs) / sum(counts)
    figures = {
        "boxes_float": counts[0],
        "boxes_optimized": counts[1],
        "boxes_matched": len(pairs),
        "max_score_difference": max((abs(a.score - b.score) for a, b in pairs), default=0.0),
    }
    return Agreement("boxes", share, len(floats), figures)


def _matched(ours: Sequence[Box], theirs: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Pairs of boxes, those that overlap most first."""
    if not ours or not theirs:
        return []
    overlaps = np.nan_to_num(iou([_corners(b) for b in ours], [_corners(b) for b in theirs]))
    pairs = []
    while overlaps.max() >= MIN_IOU:
        row, column = divmod(int(overlaps.argmax()), len(theirs))
        pairs.append((ours[row], theirs[column]))
        overlaps[row], overlaps[:, column] = 0, 0
    return pairs


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2
