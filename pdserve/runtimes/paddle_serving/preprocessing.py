"""A preprocessing chain as the service scripts take it: few operators, every parameter plain."""

from typing import Any

from pdserve.vision import preprocess
from pdserve.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD

Steps = list[dict[str, dict[str, Any]]]


def steps(ops: preprocess.TransformOps) -> Steps:
    """The steps of a chain that ``preprocess.build`` takes, as ``scripts/images.py`` reads them."""
    return [{name: params} for name, params in map(_plain, ops) if params is not None]


def _plain(op: Any) -> tuple[str, dict[str, Any] | None]:
    """None for the parameters of a step that changes nothing there."""
    name, params = preprocess.named(op)
    match name:
        case "DecodeImage":
            return "ReverseChannels", None if params.get("to_rgb", True) else {}
        case "ResizeImage":
            known = ("size", "resize_short", "keep_ratio", "interpolation", "backend")
            given = {key: params[key] for key in known if params.get(key) is not None}
            for key in ("interpolation", "backend"):
                if isinstance(given.get(key), str):
                    given[key] = given[key].lower()
            return name, given | ({"size": _pair(given["size"])} if "size" in given else {})
        case "CropImage":
            return name, {"size": _pair(params["size"])}
        case "PadImage":
            value = preprocess.number(params.get("value", 0), "PadImage.value")
            return name, {"size": _pair(params["size"]), "value": value}
        case "NormalizeImage":
            scale = 1 / 255 if params.get("scale") is None else params["scale"]
            return name, {
                "scale": preprocess.number(scale, "NormalizeImage.scale"),
                "mean": preprocess.channels(params.get("mean"), IMAGENET_MEAN, "NormalizeImage.mean"),
                "std": preprocess.channels(params.get("std"), IMAGENET_STD, "NormalizeImage.std"),
            }
    return name, None  # ToCHWImage: the scripts do that last


def _pair(size: Any) -> list[int]:
    return list(size) if isinstance(size, (list, tuple)) else [size, size]
