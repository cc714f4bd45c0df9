"""Imports the network code of PaddleClas, PaddleDetection and PaddleX from their wheels, and nothing besides.

What their packages import for training (data readers, metrics, progress bars) and is not installed here is
stood in for by empty modules: building a network and exporting it calls none of it.
"""

import importlib.abc
import importlib.machinery
import sys
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# By package: the wheel's file name, and the folder in it from which its modules are imported.
WHEELS = {
    "paddleclas": ("paddleclas-2.6.0-py3-none-any.whl", "paddleclas"),
    "paddledet": ("paddledet-2.6.0-py3-none-any.whl", ""),
    "paddlex": ("paddlex-3.7.2-py3-none-any.whl", ""),
}
# Imported by these packages for training and reports only.
_UNUSED = {
    "colorlog", "easydict", "filelock", "lap", "matplotlib", "motmetrics", "numba", "paddleslim", "pandas",
    "pkg_resources", "Polygon", "prettytable", "pyclipper", "pycocotools", "requests", "shapely", "sklearn",
    "terminaltables", "tqdm", "typeguard", "ujson", "visualdl",
}  # fmt: skip
# Packages whose __init__ imports the whole of PaddleX.
_HOLLOW = (
    "paddlex",
    "paddlex.utils",
    "paddlex.inference",
    "paddlex.inference.models",
    "paddlex.inference.models.common",
    "paddlex.inference.models.image_classification",
    "paddlex.inference.models.object_detection",
    "paddlex.inference.models.object_detection.modeling",
)


class _Empty(types.ModuleType):
    """A module in which every name is a function that returns its first argument, as a decorator may."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda first=None, *_, **__: first


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last one asked, so that a module which is installed is the real one."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        unused = name.partition(".")[0] in _UNUSED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if unused else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def unpack(wheels: Path, packages: Sequence[str], folder: Path) -> None:
    """Unpack wheels into folders of their own; FileNotFoundError names the one that is missing."""
    for package in packages:
        target = folder / package
        if not target.is_dir():
            with zipfile.ZipFile(wheels / WHEELS[package][0]) as wheel:
                wheel.extractall(target)


def importable(package: str, folder: Path) -> None:
    """Make the modules of a wheel that ``unpack`` has unpacked importable in this process."""
    root = folder / package
    sys.path.insert(0, str(root / WHEELS[package][1]))
    sys.meta_path.append(_Finder())
    if package == "paddlex":
        for name in _HOLLOW:
            module = types.ModuleType(name)
            module.__path__ = [str(root.joinpath(*name.split(".")))]
            sys.modules[name] = module


def operators_of_paddle_3() -> None:
    """Let PaddleDetection 2.6 export Paddle 3's programs, as its later versions do.

    Its wrappers of these operators write Paddle 2's programs only; Paddle 3 has the same operators itself.
    """
    import paddle
    from paddle.vision import ops
    from ppdet.modeling import ops as theirs

    def multiclass_nms(
        bboxes: Any,
        scores: Any,
        score_threshold: float,
        nms_top_k: int,
        keep_top_k: int,
        nms_threshold: float = 0.3,
        normalized: bool = True,
        nms_eta: float = 1.0,
        background_label: int = -1,
        return_index: bool = False,
        return_rois_num: bool = True,
        rois_num: Any = None,
        name: Any = None,
    ) -> tuple[Any, Any, Any]:
        kept, index, count = paddle._C_ops.multiclass_nms3(
            bboxes, scores, rois_num, score_threshold, nms_top_k, keep_top_k, nms_threshold, normalized,
            nms_eta, background_label,
        )  # fmt: skip
        return kept, count, index if return_index else None

    theirs.multiclass_nms = multiclass_nms
    for name in ("box_coder", "distribute_fpn_proposals", "generate_proposals", "prior_box"):
        setattr(theirs, name, getattr(ops, name))
