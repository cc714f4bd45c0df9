"""What the commands of README and docs find: images, configuration, a model host, a folder with models.

Tiny models stand in for the published ones, under their names; the host is a folder in its layout. What
comes from the package index counts as fetched.
"""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pdserve.models import catalog
from pdserve.models.catalog import Archive
from pdserve.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD
from tests.detectors import BOXES, CLASSES, HEIGHT, WIDTH, Program, divided, paint, reshaped
from tests.docs.blocks import ROOT
from tests.index.galleries import write_gallery
from tests.running import pdserve
from tests.tiny import build_embedder, build_inference_model, picture

CLASSIFIERS = ("ResNet50_vd", "PPLCNet_x1_0")
DETECTOR = "picodet_PPLCNet_x2_5_mainbody_lite_v1.0"
EMBEDDER = "general_PPLCNet_x2_5_lite_v1.0"
EMBEDDING = "PP-ShiTuV2_rec"
DATA_SET = "drink_dataset_v1.0"
PHOTOS = ("chelsea", "coffee", "rocket")


def make(folder: Path) -> tuple[Path, Path]:
    """Write a working folder ``checkout`` and ``host``; the two, with ``home`` beside them."""
    work, host, home = folder / "checkout", folder / "host", folder / "home"
    made = folder / "made"
    for name in CLASSIFIERS:
        _classifier(made / name / f"{name}_infer")
        _publish(host, name, made / name)
    _classifier(home / "models" / "EfficientNet_lite0_infer")
    build_embedder(home / "models", "EfficientNet_lite0_features")
    for kind in ("serving", "client"):
        shutil.rmtree(home / "models" / f"EfficientNet_lite0_features_{kind}")
    build_embedder(made / EMBEDDER, EMBEDDER)
    shutil.rmtree(made / EMBEDDER / f"{EMBEDDER}_client")
    serving = (made / EMBEDDER / f"{EMBEDDER}_serving").rename(made / "embedder")
    _publish(host, EMBEDDER, made / EMBEDDER)
    shutil.copytree(made / EMBEDDER / f"{EMBEDDER}_infer", made / EMBEDDING / f"{EMBEDDING}_infer")
    _publish(host, EMBEDDING, made / EMBEDDING)
    _detector(made / DETECTOR / f"{DETECTOR}_infer")
    _publish(host, DETECTOR, made / DETECTOR)
    _data_set(made / DATA_SET / DATA_SET, serving)
    _publish(host, DATA_SET, made / DATA_SET)
    _images(work)
    shutil.copytree(ROOT / "configs", work / "configs")
    _own_models(work, made)
    return work, host


def environment(folder: Path) -> dict[str, str]:
    """What the commands get besides the usual: home, and the folder that stands for the model host."""
    return {"PDSERVE_HOME": str(folder / "home"), "PDSERVE_MIRROR": str(folder / "host")}


def _classifier(folder: Path) -> None:
    folder.mkdir(parents=True)
    build_inference_model(folder)


def _own_models(work: Path, made: Path) -> None:
    """What the page "Your own model and labels" starts from."""
    _classifier(work / "my_model")
    _classifier(work / "bare_model")
    (work / "bare_model" / "inference.yml").unlink()
    (work / "my_labels.txt").write_text("0 poppy\n1 fern\n2 cornflower\n", "utf-8")
    shutil.copytree(ROOT / "tests/data/engines/pir", work / "my_paddle3_model")
    described = yaml.safe_load((work / "my_model" / "inference.yml").read_text("utf-8"))
    described["Global"] = {"model_name": "my_paddle3_model"}
    described["PostProcess"]["Topk"]["label_list"] = [f"label {i}" for i in range(10)]
    _describe(work / "my_paddle3_model", described)
    build_embedder(made / "own", "my_embedder")
    shutil.copytree(made / "own" / "my_embedder_infer", work / "my_embedder")
    described = yaml.safe_load((work / "my_embedder" / "inference.yml").read_text("utf-8"))
    _describe(work / "my_embedder", {**described, "PostProcess": {"NormalizeFeatures": None}})
    _detector(work / "my_detector")
    steps = [
        {"type": "Resize", "interp": 2, "keep_ratio": False, "target_size": [HEIGHT, WIDTH]},
        {"type": "NormalizeImage", "is_scale": True, "mean": [*IMAGENET_MEAN], "std": [*IMAGENET_STD]},
        {"type": "Permute"},
    ]
    labels = ["bottle", "can", "cup", "box"]
    described = {"arch": "GFL", "draw_threshold": 0.5, "Preprocess": steps, "label_list": labels}
    _describe(work / "my_detector", described, "infer_cfg.yml")


def _describe(folder: Path, content: dict[str, Any], name: str = "inference.yml") -> None:
    (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")


def _publish(host: Path, name: str, content: Path) -> None:
    """Pack a folder's content as the host's archive of that name."""
    source = catalog.get(name).source
    assert isinstance(source, Archive)
    path = host / source.url.split("/", 3)[3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", dereference=True) as archive:
        for each in sorted(content.iterdir()):
            archive.add(each, each.name)


def _detector(folder: Path) -> None:
    """A detector that reads its boxes out of the picture, as tests.detectors paints it."""
    program = Program()
    image = program.feed("image", (-1, 3, HEIGHT, WIDTH))
    factor = program.feed("scale_factor", (-1, 2))
    tensors = []
    for channel, shape, most in ((0, (-1, BOXES, 4), 255.0), (1, (-1, CLASSES, BOXES), 1.0)):
        part = program.variable(f"part_{channel}", (-1, 1, HEIGHT, WIDTH))
        ends = {
            "axes": [1],
            "starts": [channel],
            "ends": [channel + 1],
            "decrease_axis": [],
            "infer_flags": [1],
        }
        program.operator("slice", {"Input": image}, {"Out": part}, **ends)
        plain = program.variable(f"plain_{channel}", (-1, 1, HEIGHT, WIDTH))
        scale, bias = most * IMAGENET_STD[channel], most * IMAGENET_MEAN[channel]
        program.operator("scale", {"X": part}, {"Out": plain}, scale=scale, bias=bias, bias_after_scale=True)
        tensors.append(reshaped(program, plain, shape))
    rows, _, counts = program.nms(divided(program, tensors[0], factor, -1), tensors[1])
    program.fetch(program.scale(rows, "rows_out", 1.0, shape=(-1, 6)))
    program.fetch(program.scale(counts, "counts_out", 1.0, "INT32"))
    program.write(folder)


def _data_set(folder: Path, embedder: Path) -> None:
    write_gallery(folder / "gallery")
    (folder / "gallery" / "labels.txt").rename(folder / "gallery" / "drink_label.txt")
    done = pdserve(
        folder.parent / "home", "index", "build", "--gallery", str(folder / "gallery"),
        "--labels", str(folder / "gallery" / "drink_label.txt"), "--model", str(embedder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder.parent / "home", ignore_errors=True)


def _images(work: Path) -> None:
    photos = work / "photos"
    photos.mkdir(parents=True)
    for i, name in enumerate(("cat", "dog", "photo", "query", "tulip", "bus", "bridge", "cup")):
        data = picture((250 - 25 * i, 20 + 25 * i, 90))
        (photos / f"{name}.jpg").write_bytes(data)
        if i < 4:
            (work / f"{name}.jpg").write_bytes(data)
    shelf = paint([[0, 0, 4, 4], [4, 0, 8, 4]], [[200, 180]])
    Image.fromarray(np.kron(shelf, np.ones((20, 20, 1), np.uint8))).save(work / "shelf.jpg", "PNG")
    write_gallery(work / "drinks")
    write_gallery(work / "more", labels=("lemonade",))
    (work / "more" / "labels.txt").unlink()
    (work / ".venv" / "bin").mkdir(parents=True)
    (work / ".venv" / "bin" / "activate").touch()
    out = work / "demo" / "out"
    for folder, names in (("photos", PHOTOS), ("gallery", PHOTOS), ("queries", ("cat-turned",))):
        for i, name in enumerate(names):
            path = out / folder / (f"{name}/{name}.png" if folder == "gallery" else f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture((250 - 80 * i, 100, 60 + 80 * i)))
    (out / "queries" / "cat-turned.png").rename(out / "queries" / "cat-turned.jpg")
