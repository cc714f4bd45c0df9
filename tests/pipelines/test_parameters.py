"""What a request asks for otherwise than the settings say, of a model with several labels."""

import asyncio
from pathlib import Path

import pytest
import yaml

from pdserve.errors import RequestError
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.base import Direct
from pdserve.pipelines.parameters import ClassThresholds, Parameters
from tests.tiny import build_inference_model, expected, picture

COLOR = (200, 120, 0)


def test_thresholds_of_labels(tmp_path: Path) -> None:
    source = tmp_path / "several"
    source.mkdir()
    build_inference_model(source)
    description = yaml.safe_load((source / "inference.yml").read_text("utf-8"))
    labels = description["PostProcess"]["Topk"]["label_list"]
    description["PostProcess"] = {"MultiLabelThreshOutput": {"threshold": 0.5, "label_list": labels}}
    (source / "inference.yml").write_text(yaml.safe_dump(description), "utf-8")
    entry = SERVICES["classification"]
    pipeline = entry.open(entry.settings({"model": str(source)}, {}), Home(tmp_path / "home"))
    red, green, _ = expected(COLOR)
    assert 0.9 < red < 0.95
    assert 0.05 < green < 0.1

    def found(threshold: ClassThresholds | None) -> list[str]:
        steps = Direct(pipeline.models, pipeline.decode)
        steps.parameters = Parameters(label_threshold=threshold)
        (answer,) = asyncio.run(pipeline.answer([picture(COLOR)], steps))
        return [each.label for each in answer.labels]

    try:
        assert found(None) == ["red"]
        assert found(0.01) == ["red", "green"]
        assert found(0.99) == []
        assert found([0.99, 0.01, 0.5]) == ["green"]
        assert found({"default": 0.99, 1: 0.01}) == ["green"]
        for wrong, text in (
            ({0: 0.5}, "by class and has no default"),
            ([0.5, 0.5], "has 2 thresholds and 3 labels"),
            ({"default": 0.5, 7: 0.1}, "names the class 7 of 3 labels"),
            (1.5, "must be a number from 0 to 1"),
        ):
            with pytest.raises(RequestError, match=text):
                found(wrong)
    finally:
        pipeline.close()
