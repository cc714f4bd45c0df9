"""A tiny real classifier for tests: three classes, 32×32 pixels, made in milliseconds.

Its scores are the softmax of 8 × the mean of each colour (scaled to [0, 1]), so that anyone can say what
a picture must get: a red one is class 0, a green one class 1, a blue one class 2.
"""

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from pdserve.convert import convert
from pdserve.formats.serving_model import ServingModel
from pdserve_zoo.program_builder import ProgramBuilder

NAMES = ("red", "green", "blue")
SIZE = 32


def build_inference_model(folder: Path) -> None:
    """Write ``inference.pdmodel``, ``inference.pdiparams`` and ``inference.yml``."""
    program = ProgramBuilder()
    x = program.feed("x", (-1, 3, SIZE, SIZE))
    x = program.conv2d(x, np.eye(3)[:, :, None, None], np.zeros(3), stride=1, groups=1)
    x = program.global_average_pool(x)
    program.fetch(program.softmax(program.linear(x, 8 * np.eye(3), np.zeros(3))))
    program.write(folder)
    description = {
        "PreProcess": {
            "transform_ops": [
                {"ResizeImage": {"resize_short": SIZE}},
                {"CropImage": {"size": SIZE}},
                {"NormalizeImage": {"scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1], "order": ""}},
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {"Topk": {"topk": 3, "label_list": list(NAMES)}},
    }
    (folder / "inference.yml").write_text(yaml.safe_dump(description), "utf-8")


def build_serving_model(folder: Path, name: str = "tiny") -> ServingModel:
    """Write ``NAME_infer``, ``NAME_serving`` and ``NAME_client`` into a folder."""
    source = folder / f"{name}_infer"
    source.mkdir(parents=True)
    build_inference_model(source)
    return convert(
        source,
        folder / f"{name}_serving",
        folder / f"{name}_client",
        feed_aliases={"x": "image"},
        fetch_aliases={"fetch_name_0": "prediction"},
        name=name,
    )


def build_embedder(folder: Path, name: str = "tiny_embedder") -> ServingModel:
    """An embedder whose features are the means of the colours, so that colours alone decide."""
    program = ProgramBuilder()
    x = program.feed("x", (-1, 3, SIZE, SIZE))
    x = program.conv2d(x, np.eye(3)[:, :, None, None], np.zeros(3), stride=1, groups=1)
    program.fetch(program.global_average_pool(x))
    source = folder / f"{name}_infer"
    source.mkdir(parents=True)
    program.write(source)
    ops = [
        {"ResizeImage": {"size": [SIZE, SIZE]}},
        {"NormalizeImage": {"scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1], "order": ""}},
        {"ToCHWImage": None},
    ]
    (source / "inference.yml").write_text(yaml.safe_dump({"PreProcess": {"transform_ops": ops}}), "utf-8")
    return convert(
        source,
        folder / f"{name}_serving",
        folder / f"{name}_client",
        fetch_aliases={"fetch_name_0": "features"},
        name=name,
    )


def picture(color: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def expected(color: tuple[int, int, int]) -> list[float]:
    """The classifier's scores for a picture of one colour."""
    powers = np.exp(8 * np.array(color) / 255)
    return [float(p) for p in powers / powers.sum()]
