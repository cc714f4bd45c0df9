"""Image recognition (PP-ShiTu) on Paddle Serving: type `python3 recognition_web_service.py` in this folder.

A request has a key per image, its value the base64 of the file. The answer: ``result``, the repr of a list of
``{'bbox': [x1, y1, x2, y2], 'rec_docs': label, 'rec_scores': similarity}``, of such lists for several images.
"""

import pickle
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import faiss
import images
import numpy as np
import pipeline_service
from paddle_serving_server.web_service import Op

SETTINGS = pipeline_service.SETTINGS
DETECTOR = SETTINGS["detector"]  # None: whole images are recognised
EMBEDDER = SETTINGS["embedder"]

Box = Tuple[float, float, float, float]


class Detect(Op):  # type: ignore[misc]
    """Images -> their boxes. What it learns of a request it keeps in that request's own ``input_dicts``."""

    def init_op(self) -> None:
        self.chain = images.build_chain(DETECTOR["steps"])

    def preprocess(self, input_dicts: Dict[str, Any], data_id: int, log_id: int) -> Any:
        (values,) = input_dicts.values()
        decoded = images.decode_all(values)
        high, wide = DETECTOR["size"]
        made = {
            "image": [self.chain(image) for image in decoded],
            "scale_factor": [[high / image.shape[0], wide / image.shape[1]] for image in decoded],
            "im_shape": [[high, wide]] * len(decoded),
        }
        input_dicts["decoded"] = decoded
        feeds = {name: np.array(made[alias], np.float32) for alias, name in DETECTOR["feeds"].items()}
        return feeds, False, None, ""

    def process(self, feed_batch: List[Dict[str, Any]], typical_logid: int = 0) -> Any:
        """A list of rows per image, which the caller can deal out to the requests.

        It would deal out the rows themselves, one for each image. One image at a time for a model whose
        batch is fixed, or that does not say how many rows are whose.
        """
        (feeds,) = feed_batch
        count = len(next(iter(feeds.values())))
        step = count if DETECTOR["batches"] else 1
        rows: List[Any] = []
        for at in range(0, count, step):
            some = {name: value[at : at + step] for name, value in feeds.items()}
            outputs, code, message = super().process([some], typical_logid)
            if outputs is None:
                return outputs, code, message
            rows += split_rows(list(outputs.values()), step)
        return {"rows": rows}, code, message

    def postprocess(
        self, input_dicts: Dict[str, Any], fetch_dict: Dict[str, Any], data_id: int, log_id: int
    ) -> Any:
        decoded = input_dicts["decoded"]
        boxes = [read_boxes(rows, image) for rows, image in zip(fetch_dict["rows"], decoded)]
        return {"images": decoded, "boxes": boxes}, None, ""


class Recognise(Op):  # type: ignore[misc]
    """Images and their boxes -> feature vectors -> the gallery's nearest entries."""

    def init_op(self) -> None:
        self.chain = images.build_chain(EMBEDDER["steps"])
        self.index = faiss.read_index(str(Path("index") / "vector.index"))
        self.entries = pickle.loads((Path("index") / "id_map.pkl").read_bytes())

    def preprocess(self, input_dicts: Dict[str, Any], data_id: int, log_id: int) -> Any:
        (given,) = input_dicts.values()
        decoded = given["images"] if DETECTOR else images.decode_all(given)
        boxes = given["boxes"] if DETECTOR else [[] for _ in decoded]
        regions = [[*found, (0, 0, *image.shape[1::-1])] for found, image in zip(boxes, decoded)]
        input_dicts["regions"] = regions
        crops = [
            self.chain(image[y1:y2, x1:x2])
            for image, found in zip(decoded, regions)
            for x1, y1, x2, y2 in found
        ]
        return {EMBEDDER["feed"]: np.stack(crops)}, False, None, ""

    def postprocess(
        self, input_dicts: Dict[str, Any], fetch_dict: Dict[str, Any], data_id: int, log_id: int
    ) -> Any:
        features = fetch_dict[EMBEDDER["fetch"]]
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        vectors = features / np.maximum(norms, np.finfo(np.float32).tiny)
        similarities, ids = self.index.search(np.ascontiguousarray(vectors, np.float32), 1)
        if self.index.metric_type == faiss.METRIC_L2:  # of unit vectors, as an inner product
            similarities = 1 - similarities / 2
        nearest = iter(zip(similarities[:, 0].tolist(), ids[:, 0].tolist()))
        results = [self.choose([(box, *next(nearest)) for box in found]) for found in input_dicts["regions"]]
        return {"result": str(results[0] if len(results) == 1 else results)}, None, ""

    def choose(self, found: Sequence[Tuple[Any, float, int]]) -> List[Dict[str, Any]]:
        """What is similar enough and, of boxes that overlap, the most similar; of equals the last."""
        enough = [each for each in found if each[2] >= 0 and each[1] >= SETTINGS["score_threshold"]]
        kept: List[Tuple[Any, float, int]] = []
        enough.reverse()
        for each in sorted(enough, key=lambda each: -each[1]):
            if all(overlap(each[0], other[0]) <= SETTINGS["nms_threshold"] for other in kept):
                kept.append(each)
        return [
            {"bbox": list(box), "rec_docs": label_of(self.entries[number]), "rec_scores": similarity}
            for box, similarity, number in kept
        ]


def split_rows(outputs: Sequence[Any], count: int) -> List[Any]:
    """A detector's outputs -> rows (K, 6) of class, score, x1, y1, x2, y2 for each of ``count`` images.

    Raises ValueError for what is no such output.
    """
    rows = find(outputs, lambda a: a.dtype.kind == "f" and a.ndim == 2 and a.shape[1] == 6)
    if rows is None and any(a.dtype.kind == "f" and a.size == 1 and a.item() == -1 for a in outputs):
        return [np.empty((0, 6), np.float32)] * count  # what older releases return where there is no box
    if rows is None:
        raise ValueError("The detector returns no rows of six; export it with its postprocessing.")
    if count == 1:
        return [rows]
    counts = find(outputs, lambda a: a.dtype.kind == "i" and a.shape == (count,) and a.sum() == len(rows))
    if counts is None:
        raise ValueError("The detector does not say how many of its rows are whose.")
    return np.split(rows, np.cumsum(counts)[:-1])


def find(outputs: Sequence[Any], wanted: Any) -> Optional[Any]:
    return next((array for array in outputs if wanted(array)), None)


def read_boxes(rows: Any, image: Any) -> List[Box]:
    """An image's rows -> the whole pixels of its boxes, best first, inside the image."""
    height, width = image.shape[:2]
    if "scale_factor" not in DETECTOR["feeds"]:  # the model does not know the image's size
        high, wide = DETECTOR["size"]
        rows = rows * np.array([1, 1, *(width / wide, height / high) * 2], np.float32)
    real = rows[rows[:, 0] >= 0]
    best = real[np.argsort(-real[:, 1], kind="stable")[: SETTINGS["max_det_results"]]]
    best = best[best[:, 1] >= np.float32(SETTINGS["det_threshold"])]
    corners = best[np.isfinite(best).all(axis=1), 2:]
    limits = np.array([width, height] * 2, np.float32)
    inside = np.clip(corners, 0, limits).astype(int).tolist()
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in inside if x2 > x1 and y2 > y1]


def overlap(ours: Box, theirs: Box) -> float:
    """Intersection over union of two boxes of whole pixels, both corners of which belong to them."""
    wide = min(ours[2], theirs[2]) - max(ours[0], theirs[0]) + 1
    high = min(ours[3], theirs[3]) - max(ours[1], theirs[1]) + 1
    both = max(wide, 0) * max(high, 0)
    return both / (area(ours) + area(theirs) - both)


def area(box: Box) -> float:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def label_of(entry: str) -> str:
    """An entry's label: behind the tab, or where there is none behind the first blank."""
    parts = entry.split("\t") if "\t" in entry else entry.split(None, 1)
    return parts[1] if len(parts) > 1 else ""


def build(read_op: Op) -> Op:
    before = Detect(name="det", input_ops=[read_op]) if DETECTOR else read_op
    return Recognise(name="rec", input_ops=[before])


if __name__ == "__main__":
    pipeline_service.run(build)
