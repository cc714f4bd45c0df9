"""Run a detector that PaddleDetection exported: images in, boxes out.

Its preprocessing is its description's (`inference.yml`, `infer_cfg.yml`), to the letter. One without is
prepared as the guide's: normalised, then resized bilinearly to its input.

Feeds, by alias: ``image`` (N, 3, H, W) float32; where the model has
them ``scale_factor`` (N, 2) float32, H and W over the image's own, and ``im_shape`` (N, 2) float32, H and
W. Fetches, recognised by their shapes: rows (K, 6) of class, score, x1, y1, x2, y2 with, for more than
one image, the number of rows of each (N,); or, of a model exported without its suppression, boxes
(N, M, 4) and scores (N, C, M), which are suppressed here. A model without ``scale_factor`` cannot know
the image's size: its boxes are in pixels of its input, and are brought to the image's here.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.engines import Engine
from pdserve.errors import AliasError, EngineError, ImageError, ModelError, PdserveError, SettingsError
from pdserve.formats.prototxt import Variable
from pdserve.formats.serving_model import ServingModel, alias_command
from pdserve.pipelines.base import Clock, Steps
from pdserve.pipelines.loading import load_engines
from pdserve.settings import ModelSettings
from pdserve.vision import boxes, detector_chain
from pdserve.vision.boxes import Box, Suppression
from pdserve.vision.detector_chain import DetectorChain
from pdserve.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalize
from pdserve.vision.resize import resize_planes, resizer
from pdserve.vision.types import Array, Floats, Image8

log = logging.getLogger("pdserve")

IMAGE = "image"
SCALE_FACTOR = "scale_factor"
IM_SHAPE = "im_shape"

Prepared = Mapping[str, Floats]
"""The feeds of one image, by alias, each with a batch axis of one."""


@dataclass(frozen=True)
class DetectorSettings:
    """``chain``: the preprocessing. Where it is None, an image is resized to ``size``, (height, width) of the
    input, where the model leaves it free, and normalised by ``mean`` and ``std`` of the channels, R, G, B,
    scaled to 0…1. ``threshold``: the least score of a box; ``max_results``: how many, the best.
    ``suppression``: for a model exported without its own; None for one of another kind than is done here.
    """

    size: tuple[int, int] = (640, 640)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    threshold: float = 0.2
    max_results: int = 5
    suppression: Suppression | None = field(default_factory=Suppression)
    chain: DetectorChain | None = None


@dataclass(frozen=True)
class Detector:
    """Three stages, each its own method, so that a server can put queues between them.

    ``prepare`` and ``read`` may run in any number of threads; ``infer`` as the engine allows. ``size`` is
    the (height, width) of the model's input; where that varies with the image, of the image that ``check``
    takes. Made by ``open_detector``.
    """

    engine: Engine
    settings: DetectorSettings
    size: tuple[int, int]

    def prepare(self, image: Image8) -> Prepared:
        """An H×W×3 uint8 RGB image -> its feeds. Raises ImageError for one that would become too large."""
        if self.settings.chain:
            prepared = self.settings.chain(image)
            made = {
                IMAGE: prepared.image[None],
                SCALE_FACTOR: prepared.scale_factor[None],
                IM_SHAPE: prepared.im_shape[None],
            }
        else:
            high, wide = self.size
            height, width = image.shape[:2]
            made = {
                IMAGE: _tensor(image, self.size, self.settings)[None],
                SCALE_FACTOR: np.array([[high / height, wide / width]], np.float32),
                IM_SHAPE: np.array([[high, wide]], np.float32),
            }
        return {feed.alias: made[feed.alias] for feed in self.engine.feeds}

    def infer(self, prepared: Sequence[Prepared]) -> list[Floats]:
        """Feeds of images -> rows of each, (K, 6) float32, as the model orders them.

        One batch where the model takes one: all its feeds have a free batch axis, it returns more than
        rows, and the images have become one size. Else one image after the other. Raises EngineError.
        """
        if not prepared:
            return []
        alike = len({one[IMAGE].shape for one in prepared}) == 1
        if len(prepared) > 1 and not (alike and self._batches()):
            return [rows for one in prepared for rows in self.infer([one])]
        feeds = {alias: np.concatenate([one[alias] for one in prepared]) for alias in prepared[0]}
        return _rows(list(self.engine.run(feeds).values()), len(prepared), self.settings.suppression)

    def read(
        self, rows: Floats, width: int, height: int, threshold: float | Mapping[int, float] | None = None
    ) -> list[Box]:
        """An image's rows and its size -> its boxes, best first, inside the image, at most ``max_results``.

        As the published service chooses: the best, then of these those with the least score; a box that
        has no pixel of the image then falls out. ``threshold``: see `Parameters.det_threshold`.
        """
        if not any(feed.alias == SCALE_FACTOR for feed in self.engine.feeds):
            chain = self.settings.chain
            high, wide = chain.geometry((height, width))[0] if chain else self.size
            scale = np.array([1, 1, width / wide, height / high, width / wide, height / high], np.float32)
            rows = rows * scale
        real = rows[rows[:, 0] >= 0]  # where there is no box, some releases return one of class -1
        best = real[np.argsort(-real[:, 1], kind="stable")[: self.settings.max_results]]
        over = best[best[:, 1] >= self._least(best[:, 0], threshold)].tolist()
        found = [Box(x1, y1, x2, y2, score, int(kind)) for kind, score, x1, y1, x2, y2 in over]
        return boxes.clamp(found, width, height)

    def _least(self, classes: Floats, threshold: float | Mapping[int, float] | None) -> Floats | np.float32:
        """The least score of rows of these classes."""
        usual = self.settings.threshold
        if isinstance(threshold, Mapping):
            return np.array([threshold.get(int(each), usual) for each in classes], np.float32)
        return np.float32(usual if threshold is None else threshold)

    def detect(self, images: Sequence[Image8]) -> list[list[Box]]:
        """All three stages: H×W×3 uint8 RGB images -> the boxes of each. Raises EngineError."""
        raw = self.infer([self.prepare(image) for image in images])
        return [self.read(rows, i.shape[1], i.shape[0]) for rows, i in zip(raw, images, strict=True)]

    def check(self) -> None:
        """Run once, on a grey image, and see that what comes out can be read. Raises ModelError."""
        try:
            self.detect([np.full((*self.size, 3), 127, np.uint8)])
        except EngineError as error:
            raise ModelError(f"The detector does not work: {error.message}") from error

    def _batches(self) -> bool:
        free = all(shape[:1] == (-1,) for shape in self.engine.shapes.values())
        return free and len(self.engine.fetches) > 1


async def find_boxes(
    detector: Detector, name: str, image: Image8, steps: Steps, clock: Clock
) -> list[Box] | PdserveError:
    """Detect in one image by a request's steps, under the role "detector"; ``name``: the model's."""
    try:
        prepared = await steps.work(detector.prepare, image)
    except ImageError as error:  # the answer for this image, and for no other of the request
        return error
    steps.record("preprocess", clock.lap("preprocess"), name)
    (rows,) = await steps.infer("detector", [prepared])
    if isinstance(rows, PdserveError):
        return rows
    started = time.perf_counter()
    boxes = detector.read(rows, image.shape[1], image.shape[0], steps.parameters.det_threshold)
    steps.record("postprocess", time.perf_counter() - started, name)
    clock.lap("detect")
    return boxes


_NMS = "MultiClassNMS"  # what PaddleDetection calls the suppression that is done here


def describe_detector(
    model: ServingModel, threshold: float | None = None, max_results: int = DetectorSettings.max_results
) -> DetectorSettings:
    """How a detector wants its images, and which of its boxes count; ``threshold``: None for the model's own.

    Raises ModelError for a description that does not fit.
    """
    description = model.description
    usual = DetectorSettings(max_results=max_results)
    nms = description.nms or {}
    least = next(
        each for each in (threshold, description.draw_threshold, usual.threshold) if each is not None
    )
    try:
        return replace(
            usual,
            threshold=least,
            suppression=boxes.suppression_of(nms) if nms.get("name", _NMS) == _NMS else None,
            chain=detector_chain.build(description.preprocess) if description.preprocess else None,
        )
    except SettingsError as error:
        raise ModelError(f"{description.path}: {error.message}") from error


def open_detectors(
    model: ServingModel, settings: ModelSettings, threshold: float | None, max_results: int
) -> tuple[Detector, ...]:
    """Load a detector on each of its devices; ``threshold`` None: the model's own.

    Raises AliasError, ModelError, DeviceError, SettingsError.
    """
    check_aliases(model.config.feeds, model.path)
    if settings.fetch_list:
        log.warning("the detector's fetch_list has no effect: its outputs are recognised by their shapes")
    wanted = describe_detector(model, threshold, max_results)
    chain = wanted.chain.size if wanted.chain else None
    engines = load_engines(model, settings, chain or wanted.size)
    try:
        return tuple(open_detector(engine, wanted) for engine in engines)
    except BaseException:
        for engine in engines:
            engine.close()
        raise


def open_detector(engine: Engine, settings: DetectorSettings | None = None) -> Detector:
    """A detector over a loaded engine, its feeds and settings checked; ``check`` also runs it.

    Raises AliasError for feeds that are missing or unknown, SettingsError, ModelError for an input that is
    no image of three channels.
    """
    settings = settings or DetectorSettings()
    check_aliases(engine.feeds)
    _check_settings(settings)
    shape = engine.shapes[IMAGE]
    if len(shape) != 4 or shape[1] not in (3, -1):
        raise ModelError(f"The detector's feed {IMAGE!r} has the shape {shape}; it must be (N, 3, H, W).")
    chain = settings.chain.size if settings.chain else None
    usual = chain or settings.size
    high, wide = (own if own > 0 else ours for own, ours in zip(shape[2:], usual, strict=True))
    if chain and (high, wide) != chain:
        raise ModelError(
            f"The detector takes images of {wide}×{high} and its description gives {chain[1]}×{chain[0]}; "
            "correct target_size there."
        )
    return Detector(engine, settings, (high, wide))


def check_aliases(feeds: Sequence[Variable], model: Path | None = None) -> None:
    """See that a detector has the feeds it is given here, before or after it is loaded.

    ``model``: its folder, for the command in the message. Raises AliasError that names what is missing.
    """
    known = (IMAGE, SCALE_FACTOR, IM_SHAPE)
    aliases = [feed.alias for feed in feeds]
    strange = [alias for alias in aliases if alias not in known]
    if IMAGE in aliases and not strange:
        return
    # An unknown feed is probably the missing one under another alias.
    missing = [alias for alias in known[: 2 if strange else 1] if alias not in aliases] or [IM_SHAPE]
    wanted = [f"{odd}={alias}" for odd, alias in zip(strange or ["NAME"], missing, strict=False)]
    advice = alias_command(model, wanted) if model else f"pdserve alias DIR --feed {' --feed '.join(wanted)}"
    lacks = " and ".join(map(repr, missing)) + (" is" if len(missing) == 1 else " are")
    raise AliasError(
        f"The detector has the feeds {', '.join(map(repr, aliases))}, and {lacks} missing "
        f"(known are {', '.join(map(repr, known))}); type `{advice}`."
    )


def _check_settings(settings: DetectorSettings) -> None:
    if min(settings.size) < 1:
        raise SettingsError(f"The detector's size is {settings.size}; it must be (height, width) in pixels.")
    if not all(settings.std):
        raise SettingsError(f"The detector's std is {settings.std}; the image would be divided by zero.")
    if settings.max_results < 0:
        raise SettingsError(f"max_results is {settings.max_results}; it must be 0 or more.")
    resizer(settings.interpolation, "cv2", floating=True)
    if settings.suppression:
        boxes.check(settings.suppression)


def _tensor(image: Image8, size: tuple[int, int], settings: DetectorSettings) -> Floats:
    """H×W×3 uint8 -> 3×h×w float32, resized, scaled to 0…1, less mean, over std.

    The published chain normalises and then resizes. Interpolation is linear, so it may be done first, which
    leaves less to normalise; but not on bytes, which it would round.
    """
    out = np.empty((3, *size), np.float32)
    resize_planes(image, settings.interpolation, out)
    Normalize.by(1 / 255, settings.mean, settings.std).planes(out, out)
    return out


def _rows(outputs: Sequence[Array], images: int, suppression: Suppression | None) -> list[Floats]:
    """A detector's outputs -> rows (K, 6) of each image. Raises EngineError for what is neither form."""
    rows = next((a for a in outputs if _is_float(a) and a.ndim == 2 and a.shape[1] == 6), None)
    if rows is not None:
        return _split(rows, outputs, images)
    if any(_is_float(a) and a.size == 1 and a.item() == -1 for a in outputs):
        return [np.empty((0, 6), np.float32)] * images  # what older releases return where there is no box
    raw = _boxes_and_scores(outputs, images)
    if raw is None:
        shapes = ", ".join(f"{a.dtype} {a.shape}" for a in outputs)
        raise EngineError(
            f"The detector returned {shapes}, neither rows (K, 6) nor boxes (N, M, 4) and scores (N, C, M); "
            "export it with its postprocessing."
        )
    if suppression is None:
        raise EngineError(
            "The detector was exported without its suppression, of a kind that is not done here; "
            "export it with its postprocessing."
        )
    found = boxes.multiclass_nms(*raw, suppression)
    return np.split(found.rows, np.cumsum(found.counts)[:-1])


def _split(rows: Floats, outputs: Sequence[Array], images: int) -> list[Floats]:
    """Split the rows by the counts, which differ from the rows' index in rank and sum."""
    if images == 1:
        return [rows]
    for array in outputs:
        counts = np.issubdtype(array.dtype, np.integer) and array.shape == (images,)
        if counts and array.min() >= 0 and array.sum() == len(rows):
            return np.split(rows, np.cumsum(array)[:-1])
    raise EngineError(
        f"The detector returned {len(rows)} rows for {images} images and no box counts; "
        "send one image at a time, or export it with its box counts."
    )


def _boxes_and_scores(outputs: Sequence[Array], images: int) -> tuple[Floats, Floats] | None:
    """Of exactly two float outputs of rank 3, the boxes and the scores."""
    floats = [a.astype(np.float32, copy=False) for a in outputs if _is_float(a)]
    if len(floats) == 2 and all(a.ndim == 3 and len(a) == images for a in floats):
        for one, other in (floats, floats[::-1]):
            if one.shape[2] == 4 and other.shape[2] == one.shape[1]:
                return one, other
    return None


def _is_float(array: Array) -> Any:
    return np.issubdtype(array.dtype, np.floating)
