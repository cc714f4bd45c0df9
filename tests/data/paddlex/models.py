"""Run by a Python with PaddleX: what PaddleX answers for the mirror's archives, and how it reads images.

    python models.py answers ARCHIVES IMAGES     a folder of NAME_infer folders; a folder of images
    python models.py recognise ARCHIVES IMAGES
    python models.py read IMAGES

Each prints one line of JSON. ``answers.json`` and ``images.json`` beside this file were recorded with
PaddleX 3.7.2, Paddle 3.3.1 and OpenCV 4.10.
"""

import json
import sys
from pathlib import Path

import numpy as np
from paddlex import create_model, create_pipeline
from paddlex.inference.common.batch_sampler import ImageBatchSampler
from paddlex.inference.common.reader import ReadImage
from paddlex.inference.pipelines.components.faisser import FaissBuilder

CLASSIFIERS = ("PP-HGNetV2-B0", "PP-LCNet_x1_0")
PLAIN = {"engine": "paddle_static", "engine_config": {"run_mode": "paddle"}}
GRID = 4
"""Rows and columns of the pixels that are recorded of an image."""


def plain(value):
    """A value of NumPy's as JSON has it."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def answers(archives, images):
    """Two pictures, each alone and both in one batch; of the detector also with the threshold 0.2."""
    one, other = (str(Path(images) / name) for name in ("photo.jpg", "wide.png"))
    found = {}
    for name in (*CLASSIFIERS, "PP-ShiTuV2_det", "PP-ShiTuV2_rec"):
        # oneDNN fails on the detector, so Paddle runs it without.
        more = PLAIN if name.endswith("_det") else {}
        model = create_model(name, model_dir=str(Path(archives) / f"{name}_infer"), device="cpu", **more)
        asked = {
            "alone": [result for path in (one, other) for result in model.predict(path)],
            "both": list(model.predict([one, other], batch_size=2)),
        }
        if name.endswith("_det"):
            asked["over 0.2"] = list(model.predict(other, threshold=0.2))
        found[name] = {key: [shown(result) for result in results] for key, results in asked.items()}
    return found


def shown(result):
    """A result without the image; of its features every eighth."""
    kept = {
        key: plain(result[key]) for key in result if key in ("class_ids", "scores", "label_names", "boxes")
    }
    if "feature" in result:
        kept["feature"] = np.round(result["feature"][..., ::8], 7).tolist()
    return kept


def recognise(archives, images):
    """PaddleX's pipeline PP-ShiTuV2 on an index of two pictures: what comes of building and searching it."""
    parts = {"Detection": ("PP-ShiTuV2_det", PLAIN), "Recognition": ("PP-ShiTuV2_rec", {})}
    config = {"pipeline_name": "PP-ShiTuV2", "index": None, "det_threshold": 0.2, "SubModules": {}}
    for part, (name, more) in parts.items():
        given = {"module_name": part, "model_name": name, "batch_size": 1, **more}
        config["SubModules"][part] = {**given, "model_dir": str(Path(archives) / f"{name}_infer")}
    gallery = [str(Path(images) / name) for name in ("photo.jpg", "wide.png")]
    pipeline = create_pipeline(config=config, device="cpu")

    def build(size):
        pipeline.rec_model.batch_sampler.batch_size = size
        return pipeline.build_index(gallery, ["photo", "wide"], index_type="Flat")

    def features(paths):
        return [
            {"feature": result["feature"][0]} for path in paths for result in pipeline.rec_model.predict(path)
        ]

    def search():
        pipeline.rec_model.batch_sampler.batch_size = 1
        index = FaissBuilder.build(gallery, ["photo", "wide"], features, index_type="Flat")
        return list(pipeline.predict(gallery[1], index=index))

    return {
        "build, batches of 1": outcome(build, 1),
        "build, batches of 2": outcome(build, 2),
        "search": outcome(search),
    }


def outcome(function, *arguments):
    """What a call gives, as text: "done", or the error."""
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def read(images):
    """How each file is read: size and sampled pixels (RGB), for each page; or the kind of error."""
    found = {}
    for path in sorted(Path(images).iterdir()):
        try:
            pages = [page for batch in ImageBatchSampler()(str(path)) for page in batch.instances]
            pixels = [ReadImage(format="RGB").read(page) for page in pages]
            found[path.name] = [{"size": page.shape[1::-1], "pixels": sample(page)} for page in pixels]
        except Exception as error:
            found[path.name] = type(error).__name__
    return plain(found)


def sample(image):
    """GRID × GRID pixels, evenly spread."""
    rows, columns = (np.linspace(0, size - 1, GRID).round().astype(int) for size in image.shape[:2])
    return image[rows][:, columns]


if __name__ == "__main__":
    print(json.dumps({"answers": answers, "recognise": recognise, "read": read}[sys.argv[1]](*sys.argv[2:])))
