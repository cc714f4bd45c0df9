"""Classification: image files in, labels out."""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pdserve.answers import Label, Labels
from pdserve.engines import Engine
from pdserve.engines.runner import as_batch
from pdserve.errors import AliasError, EngineError, ModelError, PdserveError, RequestError, SettingsError
from pdserve.formats.serving_model import ServingModel, alias_command
from pdserve.models.home import Home
from pdserve.pipelines.base import Pipeline, PipelineModel, Steps, together
from pdserve.pipelines.loading import load_engines, open_model
from pdserve.pipelines.model_config import ClassifierConfig, classifier_config
from pdserve.pipelines.parameters import ClassThresholds
from pdserve.settings import ClassificationOptions, ModelSettings, ServiceSettings
from pdserve.vision import postprocess
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.types import Image8, Tensor

log = logging.getLogger("pdserve")

# The aliases that the guide gives a classifier, and that a caller of the model may count on.
FEED = "image"
FETCH = "prediction"

# Postprocessings whose labels are alternatives, of which the old protocol carries the best alone. Attribute
# models answer with several labels that belong together.
_ALTERNATIVES = ("Topk", "ThreshOutput")
# The one whose threshold a request may choose.
_BY_THRESHOLD = "MultiLabelThreshOutput"


class _Prepared(NamedTuple):
    """An image ready for the engine; durations in seconds, ``ended`` on time.perf_counter's clock."""

    tensor: Tensor
    decode_s: float
    preprocess_s: float
    ended: float


@dataclass(eq=False)
class ClassificationPipeline(Pipeline[Labels]):
    """A classifier. ``fetch``: the alias of the scores.

    ``prepare`` and ``read`` may run in any number of threads; ``infer`` as the engine allows.
    """

    model: ServingModel
    engines: tuple[Engine, ...]
    config: ClassifierConfig
    settings: ModelSettings
    fetch: str = FETCH
    max_pixels: int = MAX_PIXELS
    loaded: Hashable = None

    @cached_property
    def models(self) -> Mapping[str, PipelineModel]:
        config = self.config
        model = PipelineModel(
            "classifier",
            self.model,
            self.engines,
            self.settings,
            self.infer,
            self.preprocess,
            config.chain.size,
            config.names,
            self.fetch,
            self.read,
        )
        return {"model": model}

    def preprocess(self, image: Image8) -> Tensor:
        """H×W×3 uint8 RGB -> C×H×W float32. Raises ImageError."""
        return self.config.chain(image)

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
                raise EngineError(f"The model's {self.fetch!r} has values that are not numbers.")
            for i, row in zip(among, scores, strict=True):
                rows[i] = row
        return [row for row in rows if row is not None]

    def read(self, scores: Tensor, top_k: int | None = None) -> list[Label]:
        """A row of scores -> labels, best first."""
        return self.config.postprocess.read(scores, top_k)

    def reader(self, threshold: ClassThresholds | None) -> Callable[[Tensor, int | None], list[Label]]:
        """`read` with another threshold; None: the model's. Raises RequestError where it cannot be."""
        if threshold is None:
            return self.config.postprocess.read
        kind = self.config.postprocess.kind
        if kind != _BY_THRESHOLD:
            raise RequestError(
                f"{self.model.name} chooses its labels by {kind}, whose thresholds no request changes; "
                "leave the threshold out."
            )
        try:
            return postprocess.build({kind: {"threshold": threshold}}, self.config.names).read
        except SettingsError as error:
            raise RequestError(error.message) from error

    async def answer(
        self, images: Sequence[bytes | PdserveError], steps: Steps, top_k: int | None = None
    ) -> list[Labels | PdserveError]:
        read = self.reader(steps.parameters.label_threshold)
        prepared = await together([steps.decoded(image, self._prepare) for image in images])
        name = self.model.name
        for each in prepared:
            if not isinstance(each, PdserveError):
                steps.record("decode", each.decode_s, name, each.ended - each.preprocess_s)
                steps.record("preprocess", each.preprocess_s, name, each.ended)
        tensors = [each.tensor for each in prepared if not isinstance(each, PdserveError)]
        rows = iter(await steps.infer("model", tensors))
        started = time.perf_counter()
        answers: list[Labels | PdserveError] = []
        for each in prepared:
            row = each if isinstance(each, PdserveError) else next(rows)
            answers.append(row if isinstance(row, PdserveError) else Labels(tuple(read(row, top_k))))
        steps.record("postprocess", time.perf_counter() - started, name)
        return answers

    def _prepare(self, image: Image8, decode_s: float) -> _Prepared:
        started = time.perf_counter()
        tensor = self.config.chain(image)
        ended = time.perf_counter()
        return _Prepared(tensor, decode_s, ended - started, ended)

    def fields(self, answers: Sequence[Labels]) -> Mapping[str, str]:
        """``label`` and ``prob``, each the repr of a list with an entry per image."""
        labels = [[each.label.strip().replace(",", "") for each in answer.labels] for answer in answers]
        scores = [[float(np.float32(each.score)) for each in answer.labels] for answer in answers]
        if self.config.postprocess.kind in _ALTERNATIVES:
            return {"label": repr([row[0] for row in labels]), "prob": repr([row[0] for row in scores])}
        return {"label": repr(labels), "prob": repr(scores)}

    def check(self) -> None:
        """Run every engine once and see that its outputs fit the labels. Raises ModelError, SettingsError."""
        size = self.config.chain.size or (224, 224)
        for i in range(len(self.engines)):
            rows = self.infer([np.zeros((3, *size), np.float32)], i)
            width, wanted = len(rows[0]), self.config.postprocess.width
            if wanted is not None and width != wanted:
                names = self.config.names
                what = (
                    f"{len(names)} labels"
                    if names
                    else f"{self.config.postprocess.kind} for {wanted} outputs"
                )
                raise SettingsError(
                    f"The model has {width} outputs and there are {what}; give the right --labels."
                )


def check_aliases(model: ServingModel, fetch: str = FETCH) -> None:
    """See that a serving model has the feed and fetch of this service, before anything is loaded.

    Raises AliasError with the command that fixes it.
    """
    config = model.config
    feeds, fetches = [v.alias for v in config.feeds], [v.alias for v in config.fetches]
    if len(feeds) != 1:
        raise AliasError(f"{model.path} has {len(feeds)} feeds ({', '.join(feeds)}); a classifier has one.")
    wrong_feeds = [f"{feeds[0]}={FEED}"] if feeds != [FEED] else []
    wrong_fetches: list[str] = []
    if fetch not in fetches:
        if len(fetches) != 1:
            raise AliasError(f"{model.path} has no fetch {fetch!r}; its fetches are {', '.join(fetches)}.")
        wrong_fetches.append(f"{fetches[0]}={fetch}")
    if wrong_feeds or wrong_fetches:
        raise AliasError(
            f"{model.path} has the feed {feeds[0]!r} and the fetches {', '.join(map(repr, fetches))} where "
            f"classification needs {FEED!r} and {fetch!r}; "
            f"type `{alias_command(model.path, wrong_feeds, wrong_fetches)}`."
        )


def check_size(model: ServingModel, config: ClassifierConfig) -> None:
    """See that the preprocessing gives the size that the model's feed declares. Raises ModelError."""
    shape, size = model.config.feeds[0].shape, config.chain.size
    if len(shape) == 3 and size and shape[1:] != size:
        raise ModelError(
            f"{model.name} takes images of {shape[2]}×{shape[1]} and the preprocessing gives "
            f"{size[1]}×{size[0]}; set --resize-short and --crop, or --resize {shape[2]},{shape[1]}."
        )


def open_classification(settings: ServiceSettings, home: Home) -> ClassificationPipeline:
    """Find, check, load and warm up a classifier; see `ServiceEntry.open`."""
    return open_classifier("model", settings.options, settings, home).checked()


def open_classifier(
    role: str, options: ClassificationOptions, settings: ServiceSettings, home: Home
) -> ClassificationPipeline:
    """Find, check and load the classifier that the settings name for a role; it has not run yet."""
    wanted = settings.models[role]
    model, loaded = open_model(wanted, home, settings.config_dir)
    model = model.served_as("classification")
    fetch = wanted.fetch_list[0] if wanted.fetch_list else FETCH
    check_aliases(model, fetch)
    config = classifier_config(model, options)
    check_size(model, config)
    pipeline = ClassificationPipeline(
        model,
        load_engines(model, wanted, config.chain.size),
        config,
        wanted,
        fetch,
        settings.server.max_pixels,
        loaded,
    )
    log.info("preprocessing of %s from %s", model.name, config.origin)
    return pipeline
