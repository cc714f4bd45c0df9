"""The work that each server is given: an image of Paddle Serving's JSON body in, its answer out.

All of it is pdserve's own code (base64, decoding, preprocessing, OpenVINO in float32, labels), so that every
server has the fastest there is and only the server differs. Three steps, for servers that keep them apart:
``prepare`` one image, ``infer`` a batch of prepared ones, ``answer``.

The model and the port come from the environment, RIVAL_MODEL and RIVAL_PORT, since some servers start their
new workers from the name of a module.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.classification import open_classification
from pdserve.pipelines.recognition import choose
from pdserve.pipelines.regions import open_regions, regions
from pdserve.services.http.messages import strict_base64

MODEL = os.environ.get("RIVAL_MODEL", "ResNet50_vd")
PORT = int(os.environ.get("RIVAL_PORT", "18080"))
RECOGNITION = MODEL == "PP-ShiTu"
PATH = "/recognition/prediction" if RECOGNITION else "/imagenet/prediction"

# How many images go together, and how long a batch waits to fill, where a server makes batches.
BATCH = 8
WAIT_S = 0.002


def image(body: Mapping[str, Any]) -> bytes:
    """The image file in ``{"key": ["image"], "value": [base64]}``."""
    data = strict_base64(body["value"][0])
    if data is None:
        raise ValueError("the value is not base64")
    return data


def answer(fields: Mapping[str, str]) -> dict[str, Any]:
    """Paddle Serving's answer with these keys and values."""
    return {"err_no": 0, "err_msg": "", "key": [*fields], "value": [*fields.values()], "tensors": []}


class Classification:
    """A classifier's first label."""

    def __init__(self) -> None:
        chosen = SERVICES["classification"].settings(
            {"model": MODEL, "devices": ("cpu",), "instances": 1}, {}
        )
        self._pipeline = open_classification(chosen, Home.from_environ(os.environ))

    def prepare(self, data: bytes) -> Any:
        """An image file -> C×H×W float32."""
        return self._pipeline.prepare(data)

    def infer(self, prepared: Sequence[Any]) -> list[dict[str, str]]:
        """Tensors -> the fields of an answer each."""
        return [self._fields(row) for row in self._pipeline.infer(prepared)]

    def _fields(self, row: Any) -> dict[str, str]:
        best = self._pipeline.read(row, 1)[0]
        return {"label": repr([best.label.replace(",", "")]), "prob": repr([best.score])}


class Recognition:
    """Detector, embedder and index: the objects in an image."""

    def __init__(self) -> None:
        chosen = SERVICES["recognition"].settings({"devices": ("cpu",), "instances": 1}, {})
        home = Home.from_environ(os.environ)
        self._pipeline = open_regions(chosen, home)
        self._detector = self._pipeline.detectors[0]

    def prepare(self, data: bytes) -> Any:
        """An image file -> the image, and what the detector takes of it."""
        decoded = self._pipeline.decode(data)
        return decoded, self._detector.prepare(decoded)

    def infer(self, prepared: Sequence[Any]) -> list[dict[str, str]]:
        """Images -> the fields of an answer each; one run of each model for all of them."""
        rows = self._pipeline.detect([ready for _, ready in prepared])
        found = []
        for (decoded, _), row in zip(prepared, rows, strict=True):
            height, width = decoded.shape[:2]
            found.append(regions(decoded, self._detector.read(row, width, height)))
        crops = [
            crop
            for (decoded, _), parts in zip(prepared, found, strict=True)
            for crop in self._pipeline.crops(decoded, parts)
        ]
        matches = iter(self._pipeline.index.search(np.stack(self._pipeline.embedder.infer(crops)), 1))
        return [self._fields(parts, [next(matches) for _ in parts]) for parts in found]

    def _fields(self, parts: Any, near: Any) -> dict[str, str]:
        objects = choose(parts, near, self._pipeline.options)
        return {
            "result": repr(
                [
                    {"bbox": list(each.bbox), "rec_docs": each.label, "rec_scores": float(each.score)}
                    for each in objects
                ]
            )
        }


def open_task() -> Classification | Recognition:
    """The task of RIVAL_MODEL, its engines loaded and warm.

    These servers run one batch at a time, so there is one instance, with all cores.
    """
    return Recognition() if RECOGNITION else Classification()
