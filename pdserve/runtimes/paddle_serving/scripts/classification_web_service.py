"""Image classification on Paddle Serving: type `python3 classification_web_service.py` in this folder.

A request has a key per image, its value the base64 of the file. The answer: ``label`` and ``prob``, each the
repr of a list with the best of each image.
"""

from pathlib import Path
from typing import Any, Dict, List, Tuple

import images
import numpy as np
import pipeline_service
from paddle_serving_server.web_service import Op

SETTINGS = pipeline_service.SETTINGS


class Classify(Op):  # type: ignore[misc]
    """Images -> the model's scores -> labels."""

    def init_op(self) -> None:
        self.chain = images.build_chain(SETTINGS["steps"])
        self.labels: List[str] = []
        if SETTINGS["labels"]:
            self.labels = Path(SETTINGS["labels"]).read_text("utf-8").split("\n")[:-1]

    def preprocess(self, input_dicts: Dict[str, Any], data_id: int, log_id: int) -> Any:
        (values,) = input_dicts.values()
        batch = [self.chain(image) for image in images.decode_all(values)]
        return {SETTINGS["feed"]: np.stack(batch)}, False, None, ""

    def postprocess(
        self, input_dicts: Dict[str, Any], fetch_dict: Dict[str, Any], data_id: int, log_id: int
    ) -> Any:
        best = [self.read(row) for row in fetch_dict[SETTINGS["fetch"]]]
        labels = [self.name_of(number).strip().replace(",", "") for number, _ in best]
        return {"label": str(labels), "prob": str([score for _, score in best])}, None, ""

    def name_of(self, number: int) -> str:
        return self.labels[number] if self.labels else str(number)

    def read(self, scores: Any) -> Tuple[int, float]:
        """A row of scores -> the class and its score. Raises ValueError."""
        if self.labels and len(scores) != len(self.labels):
            raise ValueError(f"The model has {len(scores)} outputs for {len(self.labels)} labels.")
        if not np.isfinite(scores).all():
            raise ValueError("The model gives scores that are no numbers.")
        best = int(np.argmax(scores))
        threshold = SETTINGS["threshold"]
        if threshold is None:
            return best, float(scores[best])
        if len(scores) == 2:  # the second from the threshold on
            yes = decimal(scores[1])
            return (1, float(scores[1])) if yes >= threshold else (0, float(np.float32(decimal(1 - yes))))
        chosen = best if decimal(scores[best]) > threshold else SETTINGS["default_label"]
        return chosen, float(scores[chosen])


def decimal(score: Any) -> float:
    """A float32 score as the shortest decimal that means it, to be set against a threshold."""
    return float(str(np.float32(score)))


if __name__ == "__main__":
    pipeline_service.run(lambda read_op: Classify(name=SETTINGS["operator"], input_ops=[read_op]))
