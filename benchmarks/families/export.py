"""Exports architectures with random weights in one of Paddle's formats, with what they compute themselves.

    python -m benchmarks.families.export program SOURCES FOLDER NAME...
    python -m benchmarks.families.export pir SOURCES FOLDER NAME...

SOURCES is where the wheels are unpacked. FOLDER/NAME gets ``program`` and ``pir``, an inference folder each
with the description that the exporter's own code writes. The first of the two also writes the weights, and
``reference.npz``: feeds by name, and the fetches that the network computes for them before it is exported.
Each is a process of its own: the first one's Python may have Paddle 2, as Paddle 3 has lost operators in the
old format. What fails is written to ``FORMAT.error``; so is, beforehand, that the process ended.
"""

import contextlib
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.families import architectures
from benchmarks.families.architectures import Architecture
from benchmarks.families.sources import importable, operators_of_paddle_3

SEED = 7
# Seconds for one architecture.
LIMIT = 120
# Mean and deviation of the logits that a detector's class head is given; and a classifier's deviation.
CLASS_LOGITS = (-3.0, 1.5)
LOGITS = 2.0

Describe = Callable[[Path, int], None]  # (inference folder, number of labels)


def main(kind: str, sources: Path, folder: Path, names: Sequence[str]) -> None:
    """Export them in turn."""
    import paddle

    known = architectures.load()
    for package in {known[name].package for name in names}:
        importable(package, sources)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{kind}.error").write_text(
            f"Paddle ends its process, or takes over {LIMIT} s", "utf-8"
        )
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            with paddle.utils.unique_name.guard(), _format(kind):
                export(known[name], folder / name, kind)
            (folder / name / f"{kind}.error").unlink(missing_ok=True)
        except Exception as error:
            traceback.print_exc()
            line = str(error).strip().splitlines()[-1:] or [""]
            text = f"{type(error).__name__}: {line[0].strip()}"
            (folder / name / f"{kind}.error").write_text(text, "utf-8")


def export(one: Architecture, folder: Path, kind: str) -> None:
    """Build and save, with the weights that are there, or random ones that are calibrated and run first."""
    import paddle

    paddle.seed(SEED)
    network, feeds, describe = _BUILD[one.package](one)
    if not (folder / "weights.pdparams").is_file():
        _calibrate(network, feeds)
        if one.task in ("classification", "attributes"):
            _spread(network, feeds)
        _compute(network, feeds, folder)
        paddle.save(network.state_dict(), str(folder / "weights.pdparams"))
    network.eval()
    network.set_state_dict(paddle.load(str(folder / "weights.pdparams")))
    reference = np.load(folder / "reference.npz")
    (folder / kind).mkdir(exist_ok=True)
    specs = {
        key: paddle.static.InputSpec([None, *value.shape[1:]], "float32", key) for key, value in feeds.items()
    }
    used = {key: spec for key, spec in specs.items() if f"feed {key}" in reference}
    static = paddle.jit.to_static(network, input_spec=[specs], full_graph=True)
    # A feed that changes nothing is cut off here, as PaddleDetection's exporter does it.
    paddle.jit.save(static, str(folder / kind / "inference"), input_spec=[used])
    describe(folder / kind, reference["fetch 0"].shape[-1])


def _format(kind: str) -> contextlib.AbstractContextManager[Any]:
    """Paddle 2 knows its own format only; Paddle 3 still writes that of networks whose operators it kept."""
    import paddle

    three = int(paddle.__version__.partition(".")[0]) >= 3
    if kind == "pir" and not three:
        raise RuntimeError("Paddle 2 does not write Paddle 3's format.")
    return paddle.pir_utils.OldIrGuard() if kind == "program" and three else contextlib.nullcontext()


def _compute(network: Any, feeds: Mapping[str, Any], folder: Path) -> None:
    """Write ``reference.npz``; feeds that change nothing are left out, as exporters leave them out."""

    import paddle

    def run(given: Mapping[str, Any]) -> list[Any]:
        with paddle.no_grad():
            found = network({key: paddle.to_tensor(value) for key, value in given.items()})
        return [value.numpy() for value in (found.values() if isinstance(found, dict) else found)]

    fetches = run(feeds)
    arrays = {f"fetch {place}": value for place, value in enumerate(fetches)}
    for key, value in feeds.items():
        if value.ndim == 4 or not all(map(np.array_equal, fetches, run({**feeds, key: value * 0.7}))):
            arrays[f"feed {key}"] = value
    np.savez(folder / "reference.npz", **arrays)


def _calibrate(network: Any, feeds: Mapping[str, Any]) -> None:
    """Give the normalisations the images' statistics, and a detector's class scores a spread.

    Without it, activations of deep random networks vanish or explode, and all boxes score the same.
    A normalisation of one value per image is left out: of two images that are almost alike it makes 1 and -1,
    and of rounding, in a chain of them, anything.
    """
    import paddle
    from paddle import nn

    def leave(layer: Any, inputs: Any) -> None:
        values = inputs[0]
        if values.size // values.shape[1] <= values.shape[0]:
            layer.eval()

    network.eval()
    norms = [layer for layer in network.sublayers() if isinstance(layer, nn.layer.norm._BatchNormBase)]
    for layer in norms:
        layer.train()
        layer._momentum = 0.0
        layer._use_global_stats = None
    hooks = [layer.register_forward_pre_hook(leave) for layer in norms]
    mean, deviation = CLASS_LOGITS
    with paddle.no_grad():
        for layer in network.sublayers():
            bias = getattr(layer, "bias", None)
            # A class head starts from the prior that one box in a hundred is an object.
            if isinstance(layer, (nn.Conv2D, nn.Linear)) and bias is not None and float(bias.mean()) < -2:
                weight = layer.weight
                fan_in = weight.shape[0] if weight.ndim == 2 else int(np.prod(weight.shape[1:]))
                bias.set_value(paddle.full_like(bias, mean))
                weight.set_value(paddle.randn(weight.shape) * (deviation / fan_in**0.5))
        if norms:
            network({key: paddle.to_tensor(value) for key, value in feeds.items()})
    for hook in hooks:
        hook.remove()
    network.eval()


def _spread(network: Any, feeds: Mapping[str, Any]) -> None:
    """Scale a classifier's head: scores that are all alike, or all 0 but one, show no difference."""
    import paddle
    from paddle import nn

    last, network.last = network.last, None
    with paddle.no_grad():
        (logits,) = network({key: paddle.to_tensor(value) for key, value in feeds.items()})
        factor = LOGITS / max(float(logits.std()), 1e-12)
        classes = logits.shape[-1]
        for layer in network.sublayers():
            linear = isinstance(layer, nn.Linear) and layer.weight.shape[1] == classes
            if linear or (isinstance(layer, nn.Conv2D) and layer.weight.shape[0] == classes):
                for weight in layer.parameters(include_sublayers=False):
                    weight.set_value(weight * factor)
    network.last = last


def _images(count: int, height: int, width: int) -> Any:
    """Patches of random colours with noise, normalised: (count, 3, height, width) float32."""
    random = np.random.default_rng(SEED)
    patches = random.standard_normal((count, 3, height // 8 + 1, width // 8 + 1))
    large = patches.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return (large + 0.2 * random.standard_normal(large.shape)).astype(np.float32)


def _detector_feeds(size: tuple[int, int]) -> dict[str, Any]:
    return {
        "image": _images(1, *size),
        "im_shape": np.array([size], np.float32),
        "scale_factor": np.array([[0.5, 0.8]], np.float32),
    }


def _paddleclas(one: Architecture) -> tuple[Any, dict[str, Any], Describe]:
    import paddle
    from paddle import nn
    from ppcls.arch import build_model
    from ppcls.utils import logger
    from ppcls.utils.config import dump_infer_config

    logger.init_logger()
    body = build_model({"Arch": dict(one.config), **one.beside}, mode="export")
    last = {"classification": nn.Softmax(-1), "multilabel": nn.Sigmoid(), "attributes": nn.Sigmoid()}

    class Exported(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.last = last.get(one.task)

        def forward(self, feeds: Any) -> Any:
            out = self.body(feeds["x"])
            if isinstance(out, dict):
                out = out["features"]
            if isinstance(out, (list, tuple)):  # DeiT's and GoogLeNet's second heads
                out = out[0]
            return [paddle.flatten(out, 1) if self.last is None else self.last(out)]

    def describe(folder: Path, labels: int) -> None:
        height, width = one.size
        resize: list[dict[str, Any]] = [{"ResizeImage": {"size": [width, height]}}]
        if one.task == "classification":
            resize = [{"ResizeImage": {"resize_short": height * 8 // 7}}, {"CropImage": {"size": height}}]
        normal = {"scale": "1.0/255.0", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        ops: list[dict[str, Any]] = [*resize, {"NormalizeImage": {**normal, "order": ""}}]
        config: dict[str, Any] = {"Global": {"pdx_model_name": one.name}}
        if one.postprocess is None:
            config["DataLoader"] = {"Eval": {"Query": {"dataset": {"transform_ops": ops}}}}
        else:
            listed = folder / "labels.txt"
            listed.write_text("".join(f"{i} label {i}\n" for i in range(labels)), "utf-8")
            post = {**one.postprocess, "class_id_map_file": str(listed)}
            config["Infer"] = {"transforms": [*ops, {"ToCHWImage": None}], "PostProcess": post}
        dump_infer_config(config, str(folder / "inference.yml"))
        if one.postprocess is not None:
            listed.unlink()

    return Exported(), {"x": _images(2, *one.size)}, describe


def _paddledet(one: Architecture) -> tuple[Any, dict[str, Any], Describe]:
    import tempfile

    import paddle
    import ppdet.modeling  # noqa: F401 registers the architectures
    from ppdet.core.workspace import create, load_config
    from ppdet.engine.export_utils import _dump_infer_config

    if paddle.__version__ >= "3":
        operators_of_paddle_3()

    height, width = one.size
    normal = {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    reader = {
        "sample_transforms": [
            {"Decode": {}},
            {"Resize": {"interp": 2, "target_size": [height, width], "keep_ratio": False}},
            {"NormalizeImage": normal},
            {"Permute": {}},
        ]
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{one.name}.yml"
        path.write_text(yaml.safe_dump({"metric": "COCO", "num_classes": 80, **one.config}), "utf-8")
        config = load_config(str(path))
    network = create(config.architecture)
    for layer in [network, *network.sublayers()]:
        if hasattr(layer, "convert_to_deploy"):
            layer.convert_to_deploy()

    def describe(folder: Path, _: int) -> None:
        config["TestReader"] = reader
        config["TestDataset"] = _NoDataSet()
        _dump_infer_config(config, str(folder / "infer_cfg.yml"), [None, 3, height, width], network)

    return network, _detector_feeds(one.size), describe


class _NoDataSet:
    def get_anno(self) -> None:
        """None: PaddleDetection then takes the metric's own labels."""


def _paddlex(one: Architecture) -> tuple[Any, dict[str, Any], Describe]:
    from paddle import nn
    from paddlex.inference.models.object_detection.modeling.rt_detr import RTDETR, RTDETRConfig

    class Exported(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.body = RTDETR(RTDETRConfig(**one.config))

        def forward(self, feeds: Any) -> Any:
            found = self.body.model(feeds["image"])
            boxes, logits = found["intermediate_reference_points"], found["intermediate_logits"]
            sizes = feeds["im_shape"], feeds["scale_factor"], feeds["im_shape"]
            return self.body.post_process((boxes[:, -1], logits[:, -1]), *sizes)

    def describe(folder: Path, _: int) -> None:
        """No exporter comes with this code: PaddleDetection's form, by hand."""
        steps = [
            {"type": "Resize", "interp": 2, "keep_ratio": False, "target_size": list(one.size)},
            {"type": "NormalizeImage", "mean": [0.0] * 3, "std": [1.0] * 3, "norm_type": "none"},
            {"type": "Permute"},
        ]
        labels = [f"label {i}" for i in range(80)]
        text = yaml.safe_dump(
            {"mode": "paddle", "arch": "DETR", "metric": "COCO", "Preprocess": steps, "label_list": labels}
        )
        (folder / "inference.yml").write_text(text, "utf-8")

    return Exported(), _detector_feeds(one.size), describe


_BUILD = {"paddleclas": _paddleclas, "paddledet": _paddledet, "paddlex": _paddlex}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    os._exit(0)  # Paddle 2's threads now and then keep a process from ending
