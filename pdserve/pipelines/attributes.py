"""Labels of regions: a classifier's, such as a pedestrian's or a vehicle's attributes."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from pdserve.answers import Label, LabelledObject, LabelledObjects, Labels
from pdserve.models.home import Home
from pdserve.pipelines.base import Steps
from pdserve.pipelines.classification import ClassificationPipeline, open_classifier
from pdserve.pipelines.loading import models_signature
from pdserve.pipelines.regions import Cut, Region, Stage
from pdserve.settings import ClassificationOptions, ServiceSettings
from pdserve.vision.postprocess import score_of
from pdserve.vision.types import Image8, Tensor


class Classify(Stage):
    """Classifies regions. ``boxed``: they are a detector's, whose boxes the answer has."""

    lap = "classify"

    def __init__(self, role: str, classifier: ClassificationPipeline, boxed: bool) -> None:
        self.role, self.boxed = role, boxed
        self.classifier = classifier
        self.model = classifier.models["model"]

    def prepare(self, part: Image8) -> Tensor:
        """See `Stage.prepare`."""
        return self.classifier.preprocess(part)

    async def answer(
        self, cut: Cut, results: Sequence[Tensor], steps: Steps, top_k: int | None
    ) -> LabelledObjects | Labels:
        """See `Stage.answer`; ``top_k``: the best labels of each region alone."""
        started = time.perf_counter()
        read = self.classifier.reader(steps.parameters.label_threshold)
        labels = [tuple(read(scores, top_k)) for scores in results]
        if self.model:
            steps.record("postprocess", time.perf_counter() - started, self.model.name)
        if not self.boxed:
            return Labels(labels[0])
        return LabelledObjects(tuple(map(_object, cut.found, labels)))

    def fields(self, answers: Sequence[LabelledObjects | Labels]) -> Mapping[str, str]:
        """``result``: the repr of a list per image of objects; without boxes as a classifier's."""
        if not self.boxed:
            return self.classifier.fields([each for each in answers if isinstance(each, Labels)])
        lists = [
            [
                {
                    "bbox": list(each.bbox),
                    "score": each.score,
                    "labels": [label.label for label in each.labels],
                    "scores": [float(np.float32(label.score)) for label in each.labels],
                }
                for each in answer.objects
            ]
            for answer in answers
            if isinstance(answer, LabelledObjects)
        ]
        return {"result": repr(lists)}

    def check(self) -> None:
        """See `Stage.check`."""
        self.classifier.check()


def _object(region: Region, labels: tuple[Label, ...]) -> LabelledObject:
    box = region.box
    corners = round(box.x1, 4), round(box.y1, 4), round(box.x2, 4), round(box.y2, 4)
    return LabelledObject(corners, score_of(box.score), labels)


def open_stage(role: str, settings: ServiceSettings, home: Home) -> Classify:
    """Find, check and load the classifier that the settings name."""
    given = settings.options.model_dump()
    options = ClassificationOptions(
        **{name: value for name, value in given.items() if name in ClassificationOptions.model_fields}
    )
    classifier = open_classifier(role, options, settings, home)
    stage = Classify(role, classifier, "detector" in settings.models)
    stage.loaded = models_signature([classifier.model])
    return stage
