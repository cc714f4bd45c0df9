"""Reads architectures.yml: which architectures are exported, each with its exporter's configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("architectures.yml")


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    ``size`` is (height, width) in pixels. ``config`` is PaddleClas's ``Arch``, a configuration file of
    PaddleDetection, or the fields of PaddleX's configuration; ``beside`` stands beside ``Arch``.
    ``postprocess`` is PaddleClas's ``Infer.PostProcess``, None for features.
    """

    name: str
    family: str
    task: str
    package: str
    size: tuple[int, int]
    config: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    postprocess: Mapping[str, Any] | None = None


def load() -> dict[str, Architecture]:
    """All of them by name, in the order of the file."""
    return {each.name: each for each in _read()}


@cache
def untried() -> Mapping[str, str]:
    """Families of which none is exported -> why."""
    return dict(yaml.safe_load(_FILE.read_text("utf-8"))["untried"])


def _read() -> Iterator[Architecture]:
    table = yaml.safe_load(_FILE.read_text("utf-8"))
    for family, names in table["classification"].items():
        for name, more in names.items():
            side = more.get("size", 224)
            topk = {"name": "Topk", "topk": 5}
            config = {"name": name}
            yield Architecture(
                name, family, "classification", "paddleclas", (side, side), config, postprocess=topk
            )
    for task in ("multilabel", "attributes", "embedding"):
        for name, one in table[task].items():
            yield Architecture(
                name, one["family"], task, "paddleclas", tuple(one["size"]), one["arch"],
                one.get("beside", {}), one.get("postprocess"),
            )  # fmt: skip
    for name, one in table["detection"].items():
        package = one.get("package", "paddledet")
        yield Architecture(name, one["family"], "detection", package, tuple(one["size"]), one["config"])
