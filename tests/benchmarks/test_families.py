"""Architectures that are exported and run on every engine: the comparison itself, and a few of them."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.families import architectures, page
from benchmarks.families.__main__ import run
from benchmarks.families.compare import boxes_difference, difference
from benchmarks.families.sources import WHEELS, unpack
from pdserve.engines import ENGINES
from pdserve.models import catalog
from tests.extras import import_or_skip

# A classifier with a dropout that scales, a transformer, a detector with suppression, and one without.
CHEAP = {"PPLCNet_x0_25": "paddleclas", "DeiT_tiny_patch16_224": "paddleclas"} | {
    "PicoDet-S": "paddledet",
    "DETR-R18": "paddledet",
}


def test_every_family_of_the_catalog_is_exported_or_said_to_be_not() -> None:
    families = {catalog.get(name).family for name in catalog.load() if catalog.get(name).task != "dataset"}
    exported = {name for one in architectures.load().values() for name in one.family.split(", ")}

    assert families - exported - architectures.untried().keys() == set()
    assert exported.isdisjoint(architectures.untried())


def test_a_difference_is_that_of_one_element() -> None:
    wanted = np.array([[0.1, 0.9], [0.5, 0.5]], np.float32)

    assert difference(wanted, wanted) == {"difference": 0.0, "scale": pytest.approx(0.9)}
    assert difference(wanted, wanted + np.float32(0.25))["difference"] == pytest.approx(0.25)
    assert "shape" in difference(wanted, wanted[:1])["refused"]
    nothing = np.array([[0.1, np.nan], [0.5, 0.5]], np.float32)
    assert difference(wanted, nothing)["refused"] == "1 of the answer's 4 numbers are not finite"


def test_boxes_are_paired_by_label_in_any_order() -> None:
    rows = np.array([[0, 0.9, 0, 0, 10, 10], [0, 0.8, 50, 50, 60, 60], [1, 0.7, 0, 0, 10, 10]], np.float32)
    count = np.array([3], np.int32)
    moved = rows[::-1].copy()
    moved[0, 4] += 0.25

    same = boxes_difference([rows, count], [moved, count])
    assert (same["difference"], same["boxes"], same["unmatched"]) == (0.25, 3, 0)
    other = rows.copy()
    other[2, 0] = 0
    assert boxes_difference([rows, count], [other, count])["unmatched"] == 2
    assert boxes_difference([rows, count], [rows[:2], np.array([2], np.int32)])["unmatched"] == 1


def test_the_page_says_what_differs_and_what_was_refused() -> None:
    outcome: dict[str, Any] = {engine: {"difference": 1e-7, "scale": 1.0} for engine in ENGINES}
    outcome["onnx"] = {"difference": 0.01, "scale": 1.0}
    outcome["paddle"] = {"refused": "no pir here; use --engine x"}
    text = page.text(
        {
            "outcomes": {"ResNet18": {"pir": outcome, "program": {}}},
            "date": "2026-01-02",
            "machine": {"processor": "a CPU", "flags": ["avx2"]},
            "versions": {"paddlepaddle": "3.3.1"},
        }
    )

    assert "| ResNet | ResNet18, 224×224 | 1e-07 | **1e-02** | [1] |" in text
    assert "\n1. no it here\n" in text
    assert "| ResNet | ResNet18_vd, ResNet50_vc" in text


@pytest.mark.full
@pytest.mark.timeout(600)
def test_engines_agree_with_the_networks_that_were_exported(tmp_path: Path) -> None:
    import_or_skip("paddle", "paddle")
    import_or_skip("onnxruntime", "onnx")
    wheels = Path(os.environ.get("PDSERVE_TEST_WHEELS", "wheels"))
    files = [WHEELS[package][0] for package in sorted(set(CHEAP.values()))]
    if missing := [name for name in files if not (wheels / name).is_file()]:
        pytest.skip(f"needs {', '.join(missing)} in the folder PDSERVE_TEST_WHEELS: pip download --no-deps")
    unpack(wheels, sorted(set(CHEAP.values())), tmp_path)

    found = run(list(CHEAP), {"pir": sys.executable}, tmp_path)

    for name in CHEAP:
        for engine, one in found[name]["pir"].items():
            assert "difference" in one, (name, engine, one)
            if "boxes" in one:
                assert one["unmatched"] == 0, (name, engine, one)
                assert one["boxes"] > 10, (name, engine, one)
                assert one["difference"] < page.PIXELS, (name, engine, one)
            else:
                assert one["difference"] < page.TOLERANCE * one["scale"], (name, engine, one)
