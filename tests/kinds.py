"""A home in which every kind of service runs with tiny models, and pictures whose answers anyone can say.

`two` is a picture of 8×4 pixels with two things: at the left a blue one with the box 0, 0, 4, 3, at the right
a red one with the box 5, 0, 8, 4. `none` has nothing. There is a gallery of blue and red.
"""

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from pdserve.convert import convert
from tests.detectors import paint, write_detector
from tests.running import pdserve
from tests.tiny import build_embedder, build_serving_model, picture

BOXES = [(0, 0, 4, 3), (5, 0, 8, 4)]
SCORES = [250 / 255, 204 / 255]
OWN = """\
# What is in a picture, and the picture itself, each by its colour.
help: "Colours: what a detector finds, and the whole picture."
name: colour_service
http_port: 18091
rpc_port: 10001
regions: boxes and image
result: labels
models:
  detector:
    default: tiny_detector
    help: What finds the things.
    operator: finder
    optional: true
  classifier: tiny
sets:
  tiny: {detector: tiny_detector, classifier: tiny}
options:
  det_threshold: 0.5
  top_k: 2
"""
"""A user's own kind of service, called colours."""

OPTIONS = {
    "classification": ("--model", "tiny"),
    "recognition": ("--detector", "tiny_detector", "--embedder", "tiny_embedder", "--index", "colors"),
    "detection": ("--detector", "tiny_detector"),
    "embedding": ("--model", "tiny_embedder"),
    "attributes": ("--detector", "tiny_detector", "--classifier", "tiny"),
    "face": ("--detector", "tiny_detector", "--embedder", "tiny_embedder", "--index", "colors"),
    "colours": (),
}
"""For each kind the options with which it runs in this home."""


def png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """A PNG of these pixels, H×W×3 RGB."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def two() -> bytes:
    """The picture with two things."""
    pixels = paint(BOXES, [[250, 0], [0, 204]])
    pixels[:3, :4, 2] = 255
    pixels[1:, 5:, 0] = 255  # coordinates of boxes whose scores are 0
    return png(pixels)


def none() -> bytes:
    """A picture in which nothing is found."""
    return png(np.zeros((4, 8, 3), np.uint8))


def build_home(home: Path) -> Path:
    """Write the models, the index ``colors``, the kind ``colours``, and both pictures."""
    models = home / "models"
    build_serving_model(models)
    build_embedder(models)
    source = write_detector(models / "tiny_detector_infer", normalized=True)
    (source / "inference.yml").write_text(yaml.safe_dump({"label_list": ["cup", "spoon"]}), "utf-8")
    convert(source, models / "tiny_detector_serving", models / "tiny_detector_client")
    (home / "pipelines").mkdir()
    (home / "pipelines" / "colours.yml").write_text(OWN, "utf-8")
    for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (home / "gallery" / name).mkdir(parents=True)
        (home / "gallery" / name / "0.png").write_bytes(picture(color))
    done = pdserve(
        home, "index", "build", "--gallery", str(home / "gallery"), "--out", "colors",
        "--model", "tiny_embedder",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (home / "two.png").write_bytes(two())
    (home / "none.png").write_bytes(none())
    return home
