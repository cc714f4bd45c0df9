"""Object detection: boxes, labels and scores, and nothing behind them."""

from collections.abc import Mapping, Sequence

from pdserve.answers import DetectedObject, Detections
from pdserve.models.home import Home
from pdserve.models.labels import read_labels
from pdserve.pipelines.base import Steps
from pdserve.pipelines.loading import open_model
from pdserve.pipelines.regions import DETECTOR, Cut, Stage
from pdserve.settings import ServiceSettings
from pdserve.vision.boxes import Box
from pdserve.vision.postprocess import score_of
from pdserve.vision.types import Tensor


class Boxes(Stage):
    """Names the detector's boxes. ``names``: the labels by class id, None for none."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = names

    async def answer(
        self, cut: Cut, results: Sequence[Tensor], steps: Steps, top_k: int | None
    ) -> Detections:
        """See `Stage.answer`; ``top_k``: the best boxes alone."""
        return Detections(tuple(self._object(region.box) for region in cut.found[:top_k]))

    def _object(self, box: Box) -> DetectedObject:
        label = self.names[box.class_id] if self.names and box.class_id < len(self.names) else None
        corners = round(box.x1, 4), round(box.y1, 4), round(box.x2, 4), round(box.y2, 4)
        return DetectedObject(corners, box.class_id, label or str(box.class_id), score_of(box.score))

    def fields(self, answers: Sequence[Detections]) -> Mapping[str, str]:
        """``result``: the repr of a list per image of objects as mappings."""
        return {
            "result": repr([[vars(each) | {"bbox": list(each.bbox)} for each in a.objects] for a in answers])
        }


def open_stage(role: str, settings: ServiceSettings, home: Home) -> Boxes:
    """The labels that the settings or the detector's own file name. Raises SettingsError, ModelError."""
    given = settings.options.labels
    model, _ = open_model(settings.models[DETECTOR], home, settings.config_dir)
    return Boxes(read_labels(given) if given else model.description.labels)
